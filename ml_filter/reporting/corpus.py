"""What a scored corpus looks like, and what was kept of it: each document is read once, none is kept in memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from heapq import heappush, heapreplace
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel

from ml_filter.documents.manifest import Manifest
from ml_filter.heads.info import CalibratedCriterion
from ml_filter.heads.profile import BINS, Profile, script_of
from ml_filter.prepare.sampling import sampling_key
from ml_filter.progress import progress

STRATA = ("language", "source", "dump")
BINS_PER_POINT = 4
EXAMPLES = 3
NEAR = 0.25
"""Documents with a score this close to the threshold are near it."""
OTHERS = "(others)"
_MOST_VALUES = 1000
_EXCERPT = 400
_ROWS = 1000


class Example(BaseModel):
    """A document to look at."""

    id: str
    score: float
    excerpt: str


class ScoreSummary(BaseModel):
    """The scores of one criterion: a histogram and, for each integer score, a count and a few random documents."""

    edges: list[float]
    counts: list[int]
    by_score: dict[int, int] = {}
    examples: dict[int, list[Example]] = {}


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
    """A corpus and what was kept of it.

    Attributes:
        documents: scored, and failed.
        characters: of all texts.
        kept_characters: of the texts that were kept.
        scores: by criterion.
        strata: by column and value, as far as the documents have such columns.
        profile: to be compared with that of the training documents.
        above: documents a little above the threshold, where there is one for all.
        below: documents a little below it.
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


class _Drawn:
    """A few documents, those whose seeded hashes are smallest: random, and the same every time."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._heap: list[tuple[int, str, float, str]] = []

    def offer(self, document: str, score: float, text: str) -> None:
        item = (-sampling_key(document, self._seed, "example"), document, score, text[:_EXCERPT])
        if len(self._heap) < EXAMPLES:
            heappush(self._heap, item)
        elif item > self._heap[0]:
            heapreplace(self._heap, item)

    @property
    def examples(self) -> list[Example]:
        return [Example(id=i, score=s, excerpt=text) for _, i, s, text in sorted(self._heap, reverse=True)]


def summarise_corpus(
    scored: Manifest,
    filtered: Manifest,
    criteria: Sequence[CalibratedCriterion],
    ranked_by: str,
    threshold: float | None,
    *,
    seed: int = 0,
) -> CorpusSummary:
    """Read a scored corpus, and what was kept of it, once each.

    Args:
        scored: of the scored corpus.
        filtered: of what was kept.
        criteria: of the head.
        ranked_by: the criterion of examples and strata.
        threshold: on its score, where there is one for all documents.
        seed: draws the examples.
    """
    main = next(criterion for criterion in criteria if criterion.name == ranked_by)
    profile = Profile.of(criteria)
    scores = {criterion.name: _empty(criterion) for criterion in criteria}
    drawn: dict[int, _Drawn] = {}
    above, below = _Drawn(seed), _Drawn(seed)
    strata: dict[str, dict[str, Stratum]] = {}
    failed = characters = 0
    with progress("Reporting", scored.rows + filtered.rows) as bar:
        for table in _tables(scored, ["id", "text", *_score_columns(criteria), *STRATA]):
            texts = table["text"].to_pylist()
            characters += sum(map(len, texts))
            profile.add_texts([len(text.encode("utf-8", "surrogatepass")) for text in texts], map(script_of, texts))
            for criterion in criteria:
                column = _score_column(criterion, criteria)
                values = table[column].to_numpy(zero_copy_only=False).astype(np.float64)
                profile.add_scores(criterion, values)
                _add(scores[criterion.name], criterion, values)
                if criterion is not main:
                    continue
                whole = table[f"int_{column}"].to_pylist()
                failed += int(np.isnan(values).sum())
                for document, score, label, text in zip(table["id"].to_pylist(), values, whole, texts, strict=True):
                    if label is None:
                        continue
                    drawn.setdefault(label, _Drawn(seed)).offer(document, float(score), text)
                    if threshold is not None and abs(score - threshold) <= NEAR:
                        (above if score >= threshold else below).offer(document, float(score), text)
                scores[criterion.name].by_score = _counted(scores[criterion.name].by_score, whole)
                _stratify(strata, table, criterion, values)
            bar.advance(table.num_rows)
        kept_characters = 0
        for table in _tables(filtered, ["text", *STRATA]):
            kept_characters += pc.sum(pc.utf8_length(table["text"])).as_py() or 0
            for column, values in _values(table):
                for value, count in Counter(values).items():
                    of = strata.get(column, {})
                    of[value if value in of else OTHERS].kept += count
            bar.advance(table.num_rows)
    scores[main.name].examples = {label: drawn[label].examples for label in sorted(drawn)}
    return CorpusSummary(
        documents=sum(profile.scripts.values()),
        failed=failed,
        characters=characters,
        kept_characters=kept_characters,
        scores=scores,
        strata={column: of for column, of in strata.items() if len(of) > 1},
        profile=profile,
        above=above.examples,
        below=below.examples,
    )


def _empty(criterion: CalibratedCriterion) -> ScoreSummary:
    bins = int((criterion.high - criterion.low) * BINS_PER_POINT)
    edges = [float(edge) for edge in np.linspace(criterion.low, criterion.high, bins + 1)]
    return ScoreSummary(edges=edges, counts=[0] * bins)


def _add(summary: ScoreSummary, criterion: CalibratedCriterion, values: Any) -> None:
    there = values[np.isfinite(values)]
    found = np.histogram(there, len(summary.counts), (criterion.low, criterion.high))[0]
    summary.counts = [a + int(b) for a, b in zip(summary.counts, found, strict=True)]


def _counted(counts: Mapping[int, int], labels: Sequence[int | None]) -> dict[int, int]:
    return dict(sorted((Counter(counts) + Counter(label for label in labels if label is not None)).items()))


def _score_columns(criteria: Sequence[CalibratedCriterion]) -> list[str]:
    names = [_score_column(criterion, criteria) for criterion in criteria]
    return [*names, *(f"int_{name}" for name in names)]


def _score_column(criterion: CalibratedCriterion, criteria: Sequence[CalibratedCriterion]) -> str:
    return "score" if len(criteria) == 1 else f"score_{criterion.name}"


def _tables(manifest: Manifest, columns: Sequence[str]) -> Iterator[pa.Table]:
    for path in manifest.shard_paths():
        with fsspec.open(path, "rb") as raw:
            file = pq.ParquetFile(raw)
            there = [name for name in file.schema_arrow.names if name in columns]
            for batch in file.iter_batches(_ROWS, columns=there):
                yield pa.Table.from_batches([batch])


def _values(table: pa.Table) -> Iterator[tuple[str, list[str]]]:
    """The values of the columns that tell documents apart, as text; missing ones are empty."""
    for column in STRATA:
        if column in table.column_names:
            yield column, ["" if value is None else str(value) for value in table[column].to_pylist()]


def _stratify(
    strata: dict[str, dict[str, Stratum]], table: pa.Table, criterion: CalibratedCriterion, scores: Any
) -> None:
    for column, values in _values(table):
        of = strata.setdefault(column, {})
        for value in dict.fromkeys(values):
            if value not in of and len(of) >= _MOST_VALUES:
                stratum = of.setdefault(OTHERS, Stratum())
            else:
                stratum = of.setdefault(value, Stratum())
            here = scores[[one == value for one in values]]
            there = here[np.isfinite(here)]
            stratum.documents += len(here)
            stratum.failed += len(here) - len(there)
            stratum.total += float(there.sum())
            found = np.histogram(there, BINS, (criterion.low, criterion.high))[0]
            stratum.scores = [a + int(b) for a, b in zip(stratum.scores, found, strict=True)]
