"""Evaluate a head on labelled documents, such as human gold, and compare it with another head on the same ones."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel

from ml_filter.documents.manifest import Manifest
from ml_filter.documents.output import OutputDirectory
from ml_filter.errors import InputError
from ml_filter.heads.info import Criterion
from ml_filter.heads.labels import Labelled, LabelledDocuments
from ml_filter.heads.quality import (
    LENGTH,
    HeadComparison,
    HeadScores,
    Quality,
    compare_heads,
    length_buckets,
    measure_quality,
)
from ml_filter.heads.train import head_parent
from ml_filter.progress import progress
from ml_filter.reports.evaluation import evaluation_report
from ml_filter.scoring.engine import load_engine
from ml_filter.settings import ScoreConfig, SourceConfig

EVALUATION_NAME = "evaluation.json"
REPORT_NAME = "evaluation.html"
WORST = 20
_EXCERPT_CHARS = 400
_SHARD = "predictions"
_SOURCES = ("host", "source")
"""Columns that say where a document comes from, the finest first."""


class Disagreement(BaseModel):
    """A document whose score is far from its label, and the beginning of its text."""

    id: str
    label: float
    score: float
    excerpt: str


class HeadEvaluation(Quality):
    """The content of evaluation.json. `worst` holds the widest disagreements, the widest first.

    Tokens, in `table`, are taken as proportional to UTF-8 bytes.
    """

    head: str
    head_digest: str
    criterion: str
    labels: str
    label_column: str
    unlabelled: int
    compared_with: str | None
    comparison: HeadComparison | None
    worst: list[Disagreement]


def evaluate_head(
    model_directory: str | Path,
    gold: SourceConfig,
    label_column: str,
    output: str | Path,
    compare: str | Path | None = None,
    criterion: str | None = None,
) -> tuple[HeadEvaluation, Manifest]:
    """Score labelled documents with a head and compare.

    Writes shards with each document's `id`, `label`, `score` (null: none), `int_score`, the other head's
    `compared_score` and the columns of the strata; all figures as `evaluation.json`; and a page, `evaluation.html`.

    Args:
        model_directory: the head.
        gold: documents with labels.
        label_column: their column.
        output: directory or URL; `{digest}` in it stands for what is evaluated on what.
        compare: a second head, such as the one in production.
        criterion: of the head; not given: its only one.

    Raises:
        InputError: a head or the labels cannot be found, or do not fit each other.
    """
    data = LabelledDocuments(gold, label_column)
    directories = [model_directory] if compare is None else [model_directory, compare]
    heads = [head_parent(directory) for directory in directories]
    settings = {"label_column": label_column, "criterion": criterion}
    with OutputDirectory(output, "predictions", settings, [*data.parents, *heads]) as out:
        if out.manifest:
            return HeadEvaluation.model_validate_json(out.fs.cat_file(f"{out.root}/{EVALUATION_NAME}")), out.manifest
        opened = [_open_head(directory, criterion) for directory in directories]
        _check_ranges(opened, directories)
        column = 0 if len(data.criteria) == 1 else _column(data.criteria, criterion, ", ".join(gold.paths))
        held, seen = _Held(compared=compare is not None), 0
        with out.new_shard(_SHARD) as writer, out.new_rejects(_SHARD) as rejects, progress("Evaluating") as bar:
            for whole_chunk in data:
                seen += len(whole_chunk.ids)
                chunk = _with_label(whole_chunk, column)
                if not chunk.ids:
                    continue
                made = [HeadScores.of(head.score(chunk.texts), *head.scale) for head in opened]
                writer.write(held.add(chunk, made))
                bar.advance(len(chunk.ids))
        labels = held.joined_labels()
        unlabelled = data.unlabelled + seen - len(labels)
        _check_labels(labels, opened[0].criterion, gold, label_column)
        evaluation = HeadEvaluation(
            **dict(_quality(held, opened[0].criterion)),
            head=str(model_directory),
            head_digest=heads[0].digest,
            criterion=opened[0].criterion.name,
            labels=", ".join(gold.paths),
            label_column=label_column,
            unlabelled=unlabelled,
            compared_with=None if compare is None else str(compare),
            comparison=_comparison(held, opened[0].criterion),
            worst=held.worst(),
        )
        out.put_bytes(EVALUATION_NAME, (evaluation.model_dump_json(indent=1) + "\n").encode())
        ours = held.joined_scores(0)
        out.put_bytes(REPORT_NAME, evaluation_report(evaluation, ours.scores, labels).encode())
        counts = {"documents": len(labels), "unscored": evaluation.unscored, "unlabelled": unlabelled}
        return evaluation, out.finish([(_SHARD, out.commit(_SHARD, writer, rejects, counts))])


@dataclass(frozen=True)
class _Head:
    """One criterion of a head: what it is, and its scores of texts, [texts]."""

    criterion: Criterion
    score: Callable[[Sequence[str]], NDArray[np.float32]]

    @property
    def scale(self) -> tuple[float, float, Any]:
        return self.criterion.low, self.criterion.high, self.criterion.calibration


def _open_head(directory: str | Path, criterion: str | None) -> _Head:
    engine = load_engine(directory, ScoreConfig())
    column = _column(engine.info.names, criterion, str(directory))
    return _Head(engine.info.criteria[column], lambda texts: engine.score(texts)[:, column])


def _with_label(chunk: Labelled, column: int) -> Labelled:
    """The documents of a chunk that have this label, with it alone."""
    known = np.flatnonzero(np.isfinite(chunk.labels[:, column])).tolist()
    taken = chunk.labels[known, column : column + 1], chunk.weights[known, column : column + 1]
    strata = {name: [values[row] for row in known] for name, values in chunk.strata.items()}
    return Labelled([chunk.ids[row] for row in known], [chunk.texts[row] for row in known], *taken, strata)


def _column(names: Sequence[str], criterion: str | None, of: str) -> int:
    """The place of a criterion among those of a head or of labels; not given: the only one."""
    if len(names) > 1 if criterion is None else criterion not in names:
        raise InputError(f"{of} has the criteria {', '.join(names)}; choose one of them with --criterion")
    return 0 if criterion is None else names.index(criterion)


def _check_ranges(heads: Sequence[_Head], directories: Sequence[str | Path]) -> None:
    ranges = [(head.criterion.low, head.criterion.high) for head in heads]
    if len(set(ranges)) > 1:
        said = [
            f"{directory} scores from {low:g} to {high:g}"
            for directory, (low, high) in zip(directories, ranges, strict=True)
        ]
        raise InputError(f"{' and '.join(said)}; only heads of one score range can be compared")


def _check_labels(labels: NDArray[np.float64], criterion: Criterion, gold: SourceConfig, label_column: str) -> None:
    paths = ", ".join(gold.paths)
    if not len(labels):
        raise InputError(f"no document of {paths} has a label in {label_column!r}")
    outside = labels[(labels < criterion.low) | (labels > criterion.high)]
    if len(outside):
        raise InputError(
            f"{len(outside):,} labels of {paths} in {label_column!r} are outside the head's score range "
            f"{criterion.low:g} to {criterion.high:g} (the first is {outside[0]:g}); give a column of that range"
        )


class _Held:
    """What is kept of the documents while they stream by: numbers, strata, and the texts of the worst few."""

    def __init__(self, *, compared: bool) -> None:
        self.labels: list[NDArray[np.float64]] = []
        self.made: list[list[HeadScores]] = [[], []] if compared else [[]]
        self.lengths: list[int] = []
        self.bytes: list[int] = []
        self.strata: dict[str, list[str | None]] = {}
        self._worst: list[tuple[float, int, Disagreement]] = []

    def add(self, chunk: Labelled, made: Sequence[HeadScores]) -> pa.Table:
        """Take a chunk with one label a document; returns its rows for the shard."""
        labels = chunk.labels[:, 0]
        known = {
            name: [None if value is None else str(value) for value in values] for name, values in chunk.strata.items()
        }
        for name, values in known.items():
            self._padded(name).extend(values)
        for document_id, text, label, score in zip(chunk.ids, chunk.texts, labels, made[0].scores, strict=True):
            self._keep_worst(document_id, text, float(label), float(score))
            self.lengths.append(len(text))
            self.bytes.append(len(text.encode(errors="replace")))
        self.labels.append(labels)
        for held, scores in zip(self.made, made, strict=True):
            held.append(scores)
        missing = np.isnan(made[0].scores)
        columns = {
            "id": pa.array(chunk.ids, pa.string()),
            "label": pa.array(labels),
            "score": pa.array(made[0].scores, from_pandas=True),
            "int_score": pa.array(made[0].whole, pa.int32(), mask=missing),
        }
        if len(made) > 1:
            columns["compared_score"] = pa.array(made[1].scores, from_pandas=True)
        taken = {name: pa.array(values, pa.string()) for name, values in known.items() if name not in columns}
        return pa.table(columns | taken)

    def _padded(self, column: str) -> list[str | None]:
        """A column of the strata, None for the documents so far that have none."""
        values = self.strata.setdefault(column, [])
        values += [None] * (len(self.lengths) - len(values))
        return values

    def columns(self) -> dict[str, Sequence[str | None]]:
        """The strata's columns and the lengths, [documents] each."""
        return {name: self._padded(name) for name in self.strata} | {LENGTH: length_buckets(np.array(self.lengths))}

    def _keep_worst(self, document_id: str, text: str, label: float, score: float) -> None:
        apart = abs(score - label)
        place = -len(self.lengths)  # of two that are as far apart the first stays
        if apart > 0 and (len(self._worst) < WORST or (apart, place) > self._worst[0][:2]):
            excerpt = text if len(text) <= _EXCERPT_CHARS else text[:_EXCERPT_CHARS] + " …"
            one = (apart, place, Disagreement(id=document_id, label=label, score=score, excerpt=excerpt))
            (heapq.heappush if len(self._worst) < WORST else heapq.heappushpop)(self._worst, one)

    def worst(self) -> list[Disagreement]:
        return [one for *_, one in sorted(self._worst, key=lambda held: held[:2], reverse=True)]

    def joined_labels(self) -> NDArray[np.float64]:
        return np.concatenate(self.labels) if self.labels else np.empty(0)

    def joined_scores(self, head: int) -> HeadScores:
        parts = self.made[head]
        return HeadScores(
            np.concatenate([part.scores for part in parts]), np.concatenate([part.whole for part in parts])
        )


def _quality(held: _Held, criterion: Criterion) -> Quality:
    scores = held.joined_scores(0).scores
    if not np.isfinite(scores).any():
        raise InputError("the head gives none of the labelled documents a score")
    columns = held.columns()
    source = next((name for name in _SOURCES if name in columns), None)
    return measure_quality(
        scores,
        held.joined_labels(),
        low=criterion.low,
        high=criterion.high,
        threshold=criterion.threshold,
        calibration=criterion.calibration,
        strata={name: values for name, values in columns.items() if name != "host"},
        source=None if source is None else (source, columns[source]),
        tokens=np.array(held.bytes),
    )


def _comparison(held: _Held, criterion: Criterion) -> HeadComparison | None:
    if len(held.made) < 2:
        return None
    return compare_heads(
        held.joined_scores(0),
        held.joined_scores(1),
        held.joined_labels(),
        low=criterion.low,
        high=criterion.high,
        threshold=criterion.threshold,
    )
