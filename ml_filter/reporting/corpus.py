"""Summarise a scored corpus and what was kept of it, reading each document once and keeping none in memory."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from operator import itemgetter

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
        self._keyed: list[tuple[int, Example]] = []

    def offer(self, document_id: str, score: float, text: str) -> None:
        key = sampling_key(document_id, 0, "example")
        if len(self._keyed) < EXAMPLES or key < self._keyed[-1][0]:
            example = Example(id=document_id, score=score, excerpt=text[:_EXCERPT_CHARACTERS])
            self._keyed = sorted([*self._keyed, (key, example)], key=itemgetter(0))[:EXAMPLES]

    @property
    def examples(self) -> list[Example]:
        return [example for _, example in self._keyed]


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
    columns = {criterion.name: "score" if len(criteria) == 1 else f"score_{criterion.name}" for criterion in criteria}
    summary = CorpusSummary(
        documents=0,
        failed=0,
        characters=0,
        kept_characters=0,
        scores={criterion.name: ScoreSummary.empty(criterion) for criterion in criteria},
        strata={},
        profile=Profile.of(criteria),
    )
    ranking = summary.scores[ranked_by]
    by_score: Counter[int] = Counter()
    samples: defaultdict[int, _Sample] = defaultdict(_Sample)
    above, below = _Sample(), _Sample()
    with progress("Reporting", scored.rows + filtered.rows) as bar:
        names = [f"{prefix}{column}" for column in columns.values() for prefix in ("", "int_")]
        for table in _tables(scored, ["id", "text", *names, *STRATA]):
            texts = table["text"].to_pylist()
            summary.documents += len(texts)
            summary.characters += sum(map(len, texts))
            sizes = [len(text.encode("utf-8", "surrogatepass")) for text in texts]
            summary.profile.add_texts(sizes, map(script_of, texts))
            for criterion in criteria:
                scores = table[columns[criterion.name]].to_numpy(zero_copy_only=False).astype(np.float64)
                summary.profile.add_scores(criterion, scores)
                histogram = summary.scores[criterion.name]
                histogram.counts = _add_to_histogram(histogram.counts, scores, criterion)
                if criterion.name == ranked_by:
                    summary.failed += int(np.isnan(scores).sum())
                    _add_strata(summary.strata, table, scores, criterion)
            ranks, int_scores = (table[f"{prefix}{columns[ranked_by]}"].to_pylist() for prefix in ("", "int_"))
            for name, score, int_score, text in zip(table["id"].to_pylist(), ranks, int_scores, texts, strict=True):
                if int_score is None:
                    continue
                by_score[int_score] += 1
                samples[int_score].offer(name, score, text)
                if threshold is not None and abs(score - threshold) <= NEAR:
                    (above if score >= threshold else below).offer(name, score, text)
            bar.advance(table.num_rows)
        for table in _tables(filtered, ["text", *STRATA]):
            summary.kept_characters += pc.sum(pc.utf8_length(table["text"])).as_py() or 0
            for column, values in _stratum_values(table):
                strata = summary.strata.get(column, {})
                for value, count in Counter(values).items():
                    strata[value if value in strata else OTHERS].kept += count
            bar.advance(table.num_rows)
    ranking.by_score = dict(sorted(by_score.items()))
    ranking.examples = {int_score: sample.examples for int_score, sample in sorted(samples.items())}
    summary.strata = {column: strata for column, strata in summary.strata.items() if len(strata) > 1}
    summary.above, summary.below = above.examples, below.examples
    return summary


def _add_strata(
    columns: dict[str, dict[str, Stratum]], table: pa.Table, scores: NDArray[np.float64], criterion: Criterion
) -> None:
    for column, values in _stratum_values(table):
        strata = columns.setdefault(column, {})
        for value in dict.fromkeys(values):
            # Bounded: a column such as a URL has a value per document.
            is_new_and_full = value not in strata and len(strata) >= _MAX_VALUES
            stratum = strata.setdefault(OTHERS if is_new_and_full else value, Stratum())
            stratum_scores = scores[[row_value == value for row_value in values]]
            finite = stratum_scores[np.isfinite(stratum_scores)]
            stratum.documents += len(stratum_scores)
            stratum.failed += len(stratum_scores) - len(finite)
            stratum.total += float(finite.sum())
            stratum.scores = _add_to_histogram(stratum.scores, finite, criterion)


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
