"""Summarise a scored corpus and what was kept of it, reading each document once and keeping none in memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from heapq import heappush, heapreplace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import BaseModel

from ml_filter.criterion import Criterion
from ml_filter.documents.manifest import Manifest
from ml_filter.documents.readers import read_tables
from ml_filter.heads.profile import BINS, Profile, script_of
from ml_filter.prepare.sampling import sampling_key
from ml_filter.progress import progress

STRATA = ("language", "source", "dump")
BINS_PER_POINT = 4
EXAMPLES = 3
NEAR = 0.25
"""Documents whose score is this close to the threshold count as near it."""
OTHERS = "(others)"
_MAX_VALUES = 1000
_EXCERPT_CHARACTERS = 400


class Example(BaseModel):
    """A document to look at."""

    id: str
    score: float
    excerpt: str


class ScoreSummary(BaseModel):
    """The scores of one criterion: a histogram and, by integer score, a count and a few random documents."""

    edges: list[float]
    counts: list[int]
    by_score: dict[int, int] = {}
    examples: dict[int, list[Example]] = {}

    @classmethod
    def empty(cls, criterion: Criterion) -> ScoreSummary:
        """A histogram without scores."""
        bins = int((criterion.high - criterion.low) * BINS_PER_POINT)
        return cls(edges=np.linspace(criterion.low, criterion.high, bins + 1).tolist(), counts=[0] * bins)


class Stratum(BaseModel):
    """The documents with one value in a column. `scores` counts them in the bins of a profile."""

    documents: int = 0
    failed: int = 0
    kept: int = 0
    scores: list[int] = [0] * BINS
    total: float = 0.0

    @property
    def mean(self) -> float | None:
        """The mean score."""
        scored = self.documents - self.failed
        return self.total / scored if scored else None


class CorpusSummary(BaseModel):
    """A corpus and what was kept of it. `documents` includes the failed ones.

    `scores` are by criterion, `strata` by column and value. `above` and `below` are examples near the threshold, if one
    threshold applies to all documents.
    """

    documents: int
    failed: int
    characters: int
    kept_characters: int
    scores: dict[str, ScoreSummary]
    strata: dict[str, dict[str, Stratum]]
    profile: Profile
    above: list[Example] = []
    below: list[Example] = []


class _Sample:
    """A few random documents: those with the smallest seeded hashes, so that every run draws the same."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, str, float, str]] = []

    def offer(self, document_id: str, score: float, text: str) -> None:
        item = (-sampling_key(document_id, 0, "example"), document_id, score, text[:_EXCERPT_CHARACTERS])
        if len(self._heap) < EXAMPLES:
            heappush(self._heap, item)
        elif item > self._heap[0]:
            heapreplace(self._heap, item)

    @property
    def examples(self) -> list[Example]:
        return [
            Example(id=name, score=score, excerpt=text) for _, name, score, text in sorted(self._heap, reverse=True)
        ]


def summarise_corpus(
    scored: Manifest,
    filtered: Manifest,
    criteria: Sequence[Criterion],
    ranked_by: str,
    threshold: float | None,
) -> CorpusSummary:
    """Read a scored corpus and what was kept of it, once each.

    `ranked_by` is the criterion of examples and strata; `threshold` is on its score, None if there is no single one.
    """
    summary = _Summary(criteria, ranked_by, threshold)
    with progress("Reporting", scored.rows + filtered.rows) as bar:
        for table in _tables(scored, ["id", "text", *summary.score_columns, *STRATA]):
            summary.add_scored(table)
            bar.advance(table.num_rows)
        for table in _tables(filtered, ["text", *STRATA]):
            summary.add_kept(table)
            bar.advance(table.num_rows)
    return summary.result()


class _Summary:
    """Accumulates a `CorpusSummary` table by table."""

    def __init__(self, criteria: Sequence[Criterion], ranked_by: str, threshold: float | None) -> None:
        self._columns = {
            criterion.name: "score" if len(criteria) == 1 else f"score_{criterion.name}" for criterion in criteria
        }
        self._criteria, self._threshold = criteria, threshold
        self._ranked_by = next(criterion for criterion in criteria if criterion.name == ranked_by)
        self._profile = Profile.of(criteria)
        self._scores = {criterion.name: ScoreSummary.empty(criterion) for criterion in criteria}
        self._by_score: Counter[int] = Counter()
        self._samples: dict[int, _Sample] = {}
        self._above, self._below = _Sample(), _Sample()
        self._strata: dict[str, dict[str, Stratum]] = {}
        self._failed = self._characters = self._kept_characters = 0

    @property
    def score_columns(self) -> list[str]:
        """The columns with scores and integer scores."""
        return [f"{prefix}{column}" for column in self._columns.values() for prefix in ("", "int_")]

    def add_scored(self, table: pa.Table) -> None:
        """Count documents of the scored corpus."""
        texts = table["text"].to_pylist()
        self._characters += sum(map(len, texts))
        sizes = [len(text.encode("utf-8", "surrogatepass")) for text in texts]
        self._profile.add_texts(sizes, map(script_of, texts))
        for criterion in self._criteria:
            scores = table[self._columns[criterion.name]].to_numpy(zero_copy_only=False).astype(np.float64)
            self._profile.add_scores(criterion, scores)
            summary = self._scores[criterion.name]
            summary.counts = _add_to_histogram(summary.counts, scores, criterion)
            if criterion is self._ranked_by:
                self._failed += int(np.isnan(scores).sum())
                self._add_examples(table, texts, scores)
                self._add_strata(table, scores)

    def _add_examples(self, table: pa.Table, texts: list[str], scores: NDArray[np.float64]) -> None:
        int_scores = table[f"int_{self._columns[self._ranked_by.name]}"].to_pylist()
        for name, score, int_score, text in zip(table["id"].to_pylist(), scores, int_scores, texts, strict=True):
            if int_score is None:
                continue
            self._by_score[int_score] += 1
            self._samples.setdefault(int_score, _Sample()).offer(name, float(score), text)
            if self._threshold is not None and abs(score - self._threshold) <= NEAR:
                (self._above if score >= self._threshold else self._below).offer(name, float(score), text)

    def _add_strata(self, table: pa.Table, scores: NDArray[np.float64]) -> None:
        for column, values in _stratum_values(table):
            strata = self._strata.setdefault(column, {})
            for value in dict.fromkeys(values):
                # Bounded: a column such as a URL has a value per document.
                is_new_and_full = value not in strata and len(strata) >= _MAX_VALUES
                stratum = strata.setdefault(OTHERS if is_new_and_full else value, Stratum())
                stratum_scores = scores[[row_value == value for row_value in values]]
                finite = stratum_scores[np.isfinite(stratum_scores)]
                stratum.documents += len(stratum_scores)
                stratum.failed += len(stratum_scores) - len(finite)
                stratum.total += float(finite.sum())
                stratum.scores = _add_to_histogram(stratum.scores, finite, self._ranked_by)

    def add_kept(self, table: pa.Table) -> None:
        """Count documents that were kept."""
        self._kept_characters += pc.sum(pc.utf8_length(table["text"])).as_py() or 0
        for column, values in _stratum_values(table):
            strata = self._strata.get(column, {})
            for value, count in Counter(values).items():
                strata[value if value in strata else OTHERS].kept += count

    def result(self) -> CorpusSummary:
        """The summary of all tables."""
        ranking = self._scores[self._ranked_by.name]
        ranking.by_score = dict(sorted(self._by_score.items()))
        ranking.examples = {int_score: sample.examples for int_score, sample in sorted(self._samples.items())}
        return CorpusSummary(
            documents=sum(self._profile.scripts.values()),
            failed=self._failed,
            characters=self._characters,
            kept_characters=self._kept_characters,
            scores=self._scores,
            strata={column: strata for column, strata in self._strata.items() if len(strata) > 1},
            profile=self._profile,
            above=self._above.examples,
            below=self._below.examples,
        )


def _add_to_histogram(counts: Sequence[int], scores: NDArray[np.float64], criterion: Criterion) -> list[int]:
    """Counts in equal bins over the range of a criterion, plus those of more scores; nan is not counted."""
    added = np.histogram(scores[np.isfinite(scores)], len(counts), (criterion.low, criterion.high))[0]
    return [count + int(more) for count, more in zip(counts, added, strict=True)]


def _tables(manifest: Manifest, columns: Sequence[str]) -> Iterator[pa.Table]:
    for path, shard in zip(manifest.shard_paths(), manifest.shards, strict=True):
        yield from read_tables(path, columns, shard.rows)


def _stratum_values(table: pa.Table) -> Iterator[tuple[str, list[str]]]:
    """The columns of `STRATA` that a table has, with their values as text; missing values are empty."""
    for column in STRATA:
        if column in table.column_names:
            yield column, ["" if value is None else str(value) for value in table[column].to_pylist()]
