"""What is kept of labelled documents while they stream by: numbers, strata, and the texts of the worst few."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ml_filter.evaluation.result import Disagreement, Unit
from ml_filter.heads.info import CalibratedCriterion
from ml_filter.heads.labels import Labelled
from ml_filter.statistics.quality import (
    LENGTH,
    HeadComparison,
    HeadScores,
    Quality,
    compare_heads,
    length_buckets,
    measure_quality,
)

WORST = 20
SCORE_COLUMNS = ("score", "compared_score")
"""Columns of the predictions: of the head, and of the one it is compared with."""
_EXCERPT_CHARS = 400
_SOURCE_COLUMNS = ("host", "source")
"""Columns that say where a document comes from, the most specific first."""


class Collector:
    """Collects documents with the scores of one head, or of two that are compared."""

    def __init__(self, *, heads: int, unit: Unit) -> None:
        self.unit: Unit = unit
        self._labels: list[NDArray[np.float64]] = []
        self._scores: list[list[HeadScores]] = [[] for _ in range(heads)]
        self._lengths: list[int] = []
        self._bytes: list[int] = []
        self._columns: dict[str, list[str | None]] = {}
        self._worst: list[tuple[float, int, Disagreement]] = []

    def add(self, chunk: Labelled, scores: Sequence[HeadScores], lengths: Sequence[int]) -> pa.Table:
        """Add a chunk with one label and one length a document; returns its rows for the shard."""
        labels = chunk.labels[:, 0]
        values_by_column = {
            name: [None if value is None else str(value) for value in values] for name, values in chunk.strata.items()
        }
        for name, values in values_by_column.items():
            self._padded(name).extend(values)
        for row, (document_id, text) in enumerate(zip(chunk.ids, chunk.texts, strict=True)):
            self._keep_worst(document_id, text, float(labels[row]), float(scores[0].scores[row]))
            self._lengths.append(lengths[row])
            self._bytes.append(len(text.encode(errors="replace")))
        self._labels.append(labels)
        for parts, of_head in zip(self._scores, scores, strict=True):
            parts.append(of_head)
        columns = {
            "id": pa.array(chunk.ids, pa.string()),
            "label": pa.array(labels),
            SCORE_COLUMNS[0]: pa.array(scores[0].scores, from_pandas=True),
            "int_score": pa.array(scores[0].int_scores, pa.int32(), mask=np.isnan(scores[0].scores)),
            self.unit: pa.array(lengths, pa.int64()),
        }
        if len(scores) > 1:
            columns[SCORE_COLUMNS[1]] = pa.array(scores[1].scores, from_pandas=True)
        others = {name: values for name, values in values_by_column.items() if name not in columns}
        return pa.table(columns | {name: pa.array(values, pa.string()) for name, values in others.items()})

    def _padded(self, column: str) -> list[str | None]:
        """The values of a column, with None for the documents so far that do not have it."""
        values = self._columns.setdefault(column, [])
        values += [None] * (len(self._lengths) - len(values))
        return values

    def _keep_worst(self, document_id: str, text: str, label: float, score: float) -> None:
        distance = abs(score - label)
        order = -len(self._lengths)  # of two documents with the same distance the first is kept
        if distance > 0 and (len(self._worst) < WORST or (distance, order) > self._worst[0][:2]):
            excerpt = text if len(text) <= _EXCERPT_CHARS else text[:_EXCERPT_CHARS] + " …"
            entry = (distance, order, Disagreement(id=document_id, label=label, score=score, excerpt=excerpt))
            (heapq.heappush if len(self._worst) < WORST else heapq.heappushpop)(self._worst, entry)

    @property
    def labels(self) -> NDArray[np.float64]:
        """The labels, [documents]."""
        return np.concatenate(self._labels) if self._labels else np.empty(0)

    def scores_of(self, head: int) -> HeadScores:
        """The scores of the first or the second head."""
        parts = self._scores[head]
        return HeadScores(
            np.concatenate([part.scores for part in parts]), np.concatenate([part.int_scores for part in parts])
        )

    def columns(self) -> dict[str, Sequence[str | None]]:
        """The values of each column of strata, and the buckets of lengths, [documents] each."""
        columns: dict[str, Sequence[str | None]] = {name: self._padded(name) for name in self._columns}
        return {**columns, f"{LENGTH} {self.unit}": length_buckets(np.array(self._lengths))}

    def worst(self) -> list[Disagreement]:
        """The largest disagreements, the largest first."""
        entries = sorted(self._worst, key=lambda entry: entry[:2], reverse=True)
        return [disagreement for *_, disagreement in entries]

    def quality(self, criterion: CalibratedCriterion) -> Quality:
        """All figures of the first head."""
        columns = self.columns()
        source = next((name for name in _SOURCE_COLUMNS if name in columns), None)
        return measure_quality(
            self.scores_of(0).scores,
            self.labels,
            criterion,
            calibration=criterion.calibration,
            columns={name: values for name, values in columns.items() if name != "host"},
            source=None if source is None else (source, columns[source]),
            tokens=np.array(self._bytes),
        )

    def comparison(self, criterion: CalibratedCriterion) -> HeadComparison | None:
        """The first head against the second, if there is one."""
        if len(self._scores) < 2:
            return None
        return compare_heads(self.scores_of(0), self.scores_of(1), self.labels, criterion)
