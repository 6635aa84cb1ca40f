"""Label documents with an LLM, and report how the labels are distributed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from ml_filter.annotation.asking import Asking
from ml_filter.annotation.config import LabelConfig
from ml_filter.annotation.connection import annotator_name
from ml_filter.annotation.label_lists import LabelQuestion, label_question, load_labels, read_labels
from ml_filter.annotation.label_report import Distribution, Facet, Tally, write_distribution
from ml_filter.annotation.parsing import Answer
from ml_filter.annotation.plan import Plan
from ml_filter.annotation.run import run
from ml_filter.annotation.task import Call, Task
from ml_filter.config import Settings
from ml_filter.documents.config import SourceConfig
from ml_filter.documents.manifest import Manifest
from ml_filter.documents.output_directory import OutputDirectory
from ml_filter.documents.readers import InputShard
from ml_filter.documents.rejects import RejectsLog
from ml_filter.documents.schema import LABEL_SCHEMA
from ml_filter.errors import ConfigError, InputError

NO_VALUE = "(none)"
"""The stratum of documents without a value in a column."""


def label_documents(
    source: SourceConfig, config: LabelConfig, output: str | Path, settings: Settings | None = None
) -> Manifest:
    """Label every document by each label list, and report the distribution of the labels.

    Writes one row per document and facet (`LABEL_SCHEMA`), `distribution.json`, `distribution.html`, and bar plots by
    facet and column. Resumes like `annotate_documents` and raises the same errors.

    Args:
        source: the documents.
        config: label lists, endpoints and limits.
        output: a local directory; also holds the ledger, unless the configuration names another.
        settings: endpoint and key of the environment; None: read from the environment.
    """
    settings = settings or Settings()
    plan = Plan(source, config, LabelTask(config), annotator_name(config, settings))
    for shard, table in plan.tables(RejectsLog()):
        missing = [name for name in config.by if name not in table.column_names]
        if missing:
            raise InputError(f"{shard.uri} has no column {missing[0]!r}; it has {', '.join(table.column_names)}")
        break  # the first table is enough to notice a wrong name before anything is asked
    return run(plan, Asking(settings), output)


class LabelTask(Task):
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
        """The facets with their labels, and the columns that the report is grouped by."""
        facets = [
            {"name": question.name, "digest": question.digest, "labels": question.facet.names}
            for question in self.questions
        ]
        return {"facets": facets, "by": self._by}

    def read(self, answer: Answer, call: Call) -> dict[str, Any]:
        """The labels."""
        assert isinstance(call.question, LabelQuestion)
        return {"labels": read_labels(answer.text, call.question)}

    def table(
        self, shard: InputShard, documents: pa.Table, rows: list[dict[str, Any]], counts: Counter[str]
    ) -> pa.Table:
        """One row per document and facet; also counts the labels for the report."""
        columns = {name: _values(documents, name) for name in self._by} or {"file": [shard.uri] * documents.num_rows}
        index = {document_id: number for number, document_id in enumerate(documents["id"].to_pylist())}
        for row in rows:
            row |= {"facet": row["criterion"], "labels": row.get("labels")}
            values = {name: column[index[row["document_id"]]] for name, column in columns.items()}
            self._facets[row["facet"]].add(row["labels"], values)
        return super().table(shard, documents, rows, counts)

    def write_report(self, out: OutputDirectory, annotator: str) -> None:
        """Write the distribution of the labels."""
        write_distribution(Distribution(annotator=annotator, facets=list(self._facets.values())), out)


def _values(documents: pa.Table, name: str) -> list[str]:
    if name not in documents.column_names:
        return [NO_VALUE] * documents.num_rows
    return [NO_VALUE if value is None else str(value) for value in documents[name].to_pylist()]
