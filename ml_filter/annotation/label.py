"""Label documents with an LLM, and report how the labels are distributed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import BaseModel, computed_field

from ml_filter.annotation.asking import Asking
from ml_filter.annotation.config import LabelConfig
from ml_filter.annotation.connection import annotator_name
from ml_filter.annotation.label_lists import LabelQuestion, label_question, load_labels, read_labels
from ml_filter.annotation.plan import Call, Plan, Task
from ml_filter.annotation.responses import Answer
from ml_filter.annotation.run import run
from ml_filter.config import Settings
from ml_filter.documents.config import SourceConfig
from ml_filter.documents.manifest import Manifest
from ml_filter.documents.output_directory import OutputDirectory
from ml_filter.documents.readers import InputShard
from ml_filter.documents.rejects import RejectsLog
from ml_filter.documents.schema import LABEL_SCHEMA
from ml_filter.errors import ConfigError, InputError
from ml_filter.rendering.html import render
from ml_filter.rendering.plots import share_bars

DISTRIBUTION_NAME = "distribution.json"
REPORT_NAME = "distribution.html"
_MAX_BARS, _MAX_COLUMNS = 6, 30
"""The largest strata that a plot and a table show; the JSON file has all of them."""
NO_VALUE = "(none)"
"""The stratum of documents without a value in a column."""


def label_documents(
    source: SourceConfig, config: LabelConfig, output: str | Path, settings: Settings | None = None
) -> Manifest:
    """Label every document by each label list, and report the distribution of the labels.

    Writes one row per document and facet (`LABEL_SCHEMA`), `distribution.json`, `distribution.html`, and bar plots by
    facet and column. Resumes like `annotate_documents` and raises the same errors.
    """
    settings = settings or Settings()
    plan = Plan(source, config, _LabelTask(config), annotator_name(config, settings))
    for shard, table in plan.tables(RejectsLog()):
        missing = [name for name in config.by if name not in table.column_names]
        if missing:
            raise InputError(f"{shard.uri} has no column {missing[0]!r}; it has {', '.join(table.column_names)}")
        break  # the first table is enough to notice a wrong name before anything is asked
    return run(plan, Asking(settings), output)


class _LabelTask(Task):
    """Labels from label lists; each list is a facet with its own question and row.

    Raises:
        ConfigError: a label list does not exist or is invalid, or two have the same name.
    """

    kind, shard, done, doing = "labels", "labels", "labelled", "Labelling"
    schema = LABEL_SCHEMA

    def __init__(self, config: LabelConfig) -> None:
        self._by = config.by
        self.questions: Sequence[LabelQuestion] = [label_question(load_labels(name)) for name in config.labels]
        self._facets = {
            question.name: Facet(
                name=question.name,
                choose=question.facet.choose,
                overall=Tally(labels=dict.fromkeys(question.facet.names, 0)),
                strata={name: {} for name in config.by or ["file"]},
            )
            for question in self.questions
        }
        if len(self._facets) < len(config.labels):
            raise ConfigError(f"two of the label lists {', '.join(config.labels)} have the same name")

    @cached_property
    def identity(self) -> dict[str, Any]:
        facets = [{"name": q.name, "digest": q.digest, "labels": q.facet.names} for q in self.questions]
        return {"facets": facets, "by": self._by}

    def read(self, answer: Answer, call: Call) -> dict[str, Any]:
        assert isinstance(call.question, LabelQuestion)
        return {"labels": read_labels(answer.text, call.question, cut_off=answer.cut_off)}

    def table(
        self, shard: InputShard, documents: pa.Table, rows: list[dict[str, Any]], counts: Counter[str]
    ) -> pa.Table:
        columns = {name: _values(documents, name) for name in self._by} or {"file": [shard.uri] * documents.num_rows}
        index = {document_id: number for number, document_id in enumerate(documents["id"].to_pylist())}
        for row in rows:
            row |= {"facet": row["criterion"], "labels": row.get("labels")}
            values = {name: column[index[row["document_id"]]] for name, column in columns.items()}
            self._facets[row["facet"]].add(row["labels"], values)
        return super().table(shard, documents, rows, counts)

    def write_report(self, out: OutputDirectory, annotator: str) -> None:
        distribution = Distribution(annotator=annotator, facets=list(self._facets.values()))
        out.put_bytes(DISTRIBUTION_NAME, (distribution.model_dump_json(indent=1) + "\n").encode())
        plots = _plots(distribution)
        for name, svg in plots.items():
            out.put_bytes(f"{name}.svg", svg.encode())
        tables = {
            (facet.name, column): _largest(strata, _MAX_COLUMNS)
            for facet in distribution.facets
            for column, strata in facet.strata.items()
        }
        values = {"distribution": distribution, "plots": plots, "tables": tables, "plot_name": _plot_name}
        out.put_bytes(REPORT_NAME, render("annotation/templates/distribution.html", **values).encode())


def _values(documents: pa.Table, name: str) -> list[str]:
    if name not in documents.column_names:
        return [NO_VALUE] * documents.num_rows
    return [NO_VALUE if value is None else str(value) for value in documents[name].to_pylist()]


class Tally(BaseModel):
    """Numbers of documents in a stratum: all, failed, without a label, and by label.

    `shares` are relative to the documents that did not fail; if several labels are allowed, they add up to more than 1.
    """

    documents: int = 0
    failed: int = 0
    none: int = 0
    labels: dict[str, int]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def shares(self) -> dict[str, float]:
        """The share of each label; empty if every document failed."""
        labelled = self.documents - self.failed
        return {name: count / labelled for name, count in self.labels.items()} if labelled else {}

    @computed_field  # type: ignore[prop-decorator]
    @property
    def share_failed(self) -> float | None:
        """The share of failed documents; None without documents."""
        return self.failed / self.documents if self.documents else None

    def add(self, labels: Sequence[str] | None) -> None:
        """Count a document; None means that it failed."""
        self.documents += 1
        self.failed += labels is None
        self.none += labels == []
        for name in labels or []:
            self.labels[name] += 1


class Facet(BaseModel):
    """The distribution of the labels of a facet, overall and by column and value."""

    name: str
    choose: str
    overall: Tally
    strata: dict[str, dict[str, Tally]]

    def add(self, labels: Sequence[str] | None, values: dict[str, str]) -> None:
        """Count a document with its value in each column."""
        self.overall.add(labels)
        for column, value in values.items():
            empty = Tally(labels=dict.fromkeys(self.overall.labels, 0))
            self.strata[column].setdefault(value, empty).add(labels)


class Distribution(BaseModel):
    """The content of distribution.json."""

    annotator: str
    facets: list[Facet]


def _plots(distribution: Distribution) -> dict[str, str]:
    """SVG texts by name: one for each facet, and one for each facet and column with several values."""
    plots = {}
    for facet in distribution.facets:
        xlabel = f"share of documents with the label ({facet.name})"
        plots[facet.name] = share_bars({"all documents": facet.overall.shares}, xlabel=xlabel)
        for column, strata in facet.strata.items():
            shares = {value: tally.shares for value, tally in _largest(strata, _MAX_BARS) if tally.shares}
            if len(strata) > 1 and shares:
                plots[_plot_name(facet, column)] = share_bars(shares, xlabel=xlabel)
    return plots


def _plot_name(facet: Facet, column: str) -> str:
    return re.sub(r"\W+", "_", f"{facet.name}_by_{column}")


def _largest(strata: dict[str, Tally], limit: int) -> list[tuple[str, Tally]]:
    return sorted(strata.items(), key=lambda item: (-item[1].documents, item[0]))[:limit]
