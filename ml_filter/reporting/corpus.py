"""Summarise a scored corpus and what was kept of it, reading each shard once and keeping no document in memory."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import BaseModel

from ml_filter import __version__
from ml_filter.criterion import Criterion
from ml_filter.documents.manifest import Manifest, Shard, digest_of
from ml_filter.documents.readers import read_tables
from ml_filter.heads.profile import BINS, Profile, script_of
from ml_filter.location import Location
from ml_filter.prepare.sampling import sampling_key
from ml_filter.progress import progress
from ml_filter.reporting.parts import PARTS_NAME, KeptParts

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

    def add(self, part: ScoreSummary) -> None:
        """Add other documents."""
        self.counts = [a + b for a, b in zip(self.counts, part.counts, strict=True)]
        self.by_score = dict(sorted(_sum(self.by_score, part.by_score).items()))
        for int_score, examples in part.examples.items():
            self.examples[int_score] = _sample([*self.examples.get(int_score, []), *examples])
        self.examples = dict(sorted(self.examples.items()))


class Stratum(BaseModel):
    """The documents with one value in a column. `scores` counts them in the bins of a profile."""

    documents: int = 0
    failed: int = 0
    kept: int = 0
    scores: list[int] = [0] * BINS
    total: float = 0.0

    def add(self, part: Stratum) -> None:
        """Add other documents with this value."""
        self.documents += part.documents
        self.failed += part.failed
        self.kept += part.kept
        self.total += part.total
        self.scores = [a + b for a, b in zip(self.scores, part.scores, strict=True)]

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

    documents: int = 0
    failed: int = 0
    characters: int = 0
    kept_characters: int = 0
    scores: dict[str, ScoreSummary]
    strata: dict[str, dict[str, Stratum]] = {}
    profile: Profile
    above: list[Example] = []
    below: list[Example] = []

    @classmethod
    def empty(cls, criteria: Sequence[Criterion]) -> CorpusSummary:
        """A summary of no documents."""
        scores = {criterion.name: ScoreSummary.empty(criterion) for criterion in criteria}
        return cls(scores=scores, profile=Profile.of(criteria))

    def add(self, part: CorpusSummary) -> None:
        """Add the documents of another summary. Of a column with very many values, only the first have an own entry."""
        self.documents += part.documents
        self.failed += part.failed
        self.characters += part.characters
        self.profile.add(part.profile)
        for name, scores in part.scores.items():
            self.scores[name].add(scores)
        for column, values in part.strata.items():
            strata = self.strata.setdefault(column, {})
            for value, stratum in values.items():
                # Bounded: a column such as a URL has a value per document.
                is_new_and_full = value not in strata and len(strata) >= _MAX_VALUES
                strata.setdefault(OTHERS if is_new_and_full else value, Stratum()).add(stratum)
        self.above, self.below = _sample([*self.above, *part.above]), _sample([*self.below, *part.below])

    def add_kept(self, kept: Kept) -> None:
        """Count documents that were kept of those in the summary."""
        self.kept_characters += kept.characters
        for column, values in kept.documents.items():
            strata = self.strata.get(column, {})
            for value, count in values.items():
                strata[value if value in strata else OTHERS].kept += count


class Kept(BaseModel):
    """Documents that were kept; `documents` are by column and value."""

    characters: int = 0
    documents: dict[str, dict[str, int]] = {}


def _sample(examples: Iterable[Example]) -> list[Example]:
    """A few random documents: those with the smallest seeded hashes, so that every run draws the same."""
    return sorted(examples, key=lambda example: sampling_key(example.id, 0, "example"))[:EXAMPLES]


def summarise_corpus(
    scored: Manifest,
    filtered: Manifest,
    criteria: Sequence[Criterion],
    ranked_by: str,
    threshold: float | None,
) -> CorpusSummary:
    """Read a scored corpus and what was kept of it, shard by shard, and add up the summaries of the shards.

    They are kept beside the filtered documents, so that a later report reads only the shards that are new.

    `ranked_by` is the criterion of examples and strata; `threshold` is on its score, None if it has several or none.
    """
    view = _View(criteria, ranked_by, threshold)
    summary = CorpusSummary.empty(criteria)
    with KeptParts(Location(filtered.path_of(PARTS_NAME)), view.digest) as parts:
        with progress("Reporting", scored.rows + filtered.rows) as bar:
            for path, shard in zip(scored.shard_paths(), scored.shards, strict=True):
                summary.add(parts.find(shard, CorpusSummary) or parts.keep(shard, view.summarise(path, shard)))
                bar.advance(shard.rows)
            for path, shard in zip(filtered.shard_paths(), filtered.shards, strict=True):
                summary.add_kept(parts.find(shard, Kept) or parts.keep(shard, _kept(path, shard)))
                bar.advance(shard.rows)
        parts.save()
    summary.strata = {column: strata for column, strata in summary.strata.items() if len(strata) > 1}
    return summary


class _View(NamedTuple):
    """What a report shows of a corpus."""

    criteria: Sequence[Criterion]
    ranked_by: str
    threshold: float | None

    @property
    def digest(self) -> str:
        """A digest of all that the summary of a shard depends on beside the shard."""
        criteria = [criterion.model_dump() for criterion in self.criteria]
        return digest_of([__version__, criteria, self.ranked_by, self.threshold])

    def summarise(self, path: str, shard: Shard) -> CorpusSummary:
        """The summary of one scored shard."""
        several = len(self.criteria) > 1
        columns = {c.name: f"score_{c.name}" if several else "score" for c in self.criteria}
        summary = CorpusSummary.empty(self.criteria)
        ranking = summary.scores[self.ranked_by]
        by_score: Counter[int] = Counter()
        samples: defaultdict[int, _Sampler] = defaultdict(_Sampler)
        above, below = _Sampler(), _Sampler()
        names = [f"{prefix}{column}" for column in columns.values() for prefix in ("", "int_")]
        for table in read_tables(path, ["id", "text", *names, *STRATA], shard.rows):
            texts = table["text"].to_pylist()
            summary.documents += len(texts)
            summary.characters += sum(map(len, texts))
            sizes = [len(text.encode("utf-8", "surrogatepass")) for text in texts]
            summary.profile.add_texts(sizes, map(script_of, texts))
            for criterion in self.criteria:
                scores = table[columns[criterion.name]].to_numpy(zero_copy_only=False).astype(np.float64)
                summary.profile.add_scores(criterion, scores)
                histogram = summary.scores[criterion.name]
                histogram.counts = _add_to_histogram(histogram.counts, scores, criterion)
                if criterion.name == self.ranked_by:
                    summary.failed += int(np.isnan(scores).sum())
                    _add_strata(summary.strata, table, scores, criterion)
            ranks, int_scores = (table[f"{prefix}{columns[self.ranked_by]}"].to_pylist() for prefix in ("", "int_"))
            for name, score, int_score, text in zip(table["id"].to_pylist(), ranks, int_scores, texts, strict=True):
                if int_score is None:
                    continue
                by_score[int_score] += 1
                samples[int_score].offer(name, score, text)
                if self.threshold is not None and abs(score - self.threshold) <= NEAR:
                    (above if score >= self.threshold else below).offer(name, score, text)
        ranking.by_score = dict(by_score)
        ranking.examples = {int_score: sampler.examples for int_score, sampler in samples.items()}
        summary.above, summary.below = above.examples, below.examples
        return summary


class _Sampler:
    """Draws what `_sample` would of many documents."""

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


def _kept(path: str, shard: Shard) -> Kept:
    kept = Kept()
    for table in read_tables(path, ["text", *STRATA], shard.rows):
        kept.characters += pc.sum(pc.utf8_length(table["text"])).as_py() or 0
        for column, values in _stratum_values(table):
            kept.documents[column] = _sum(kept.documents.get(column, {}), Counter(values))
    return kept


def _add_strata(
    columns: dict[str, dict[str, Stratum]], table: pa.Table, scores: NDArray[np.float64], criterion: Criterion
) -> None:
    for column, values in _stratum_values(table):
        strata = columns.setdefault(column, {})
        encoded = pa.array(values, pa.string()).dictionary_encode()
        codes = encoded.indices.to_numpy()
        for code, value in enumerate(encoded.dictionary.to_pylist()):
            stratum = strata.setdefault(value, Stratum())
            stratum_scores = scores[codes == code]
            finite = stratum_scores[np.isfinite(stratum_scores)]
            stratum.documents += len(stratum_scores)
            stratum.failed += len(stratum_scores) - len(finite)
            stratum.total += float(finite.sum())
            stratum.scores = _add_to_histogram(stratum.scores, finite, criterion)


def _add_to_histogram(counts: Sequence[int], scores: NDArray[np.float64], criterion: Criterion) -> list[int]:
    """Counts in equal bins over the range of a criterion, plus those of more scores; nan is not counted."""
    added = np.histogram(scores[np.isfinite(scores)], len(counts), (criterion.low, criterion.high))[0]
    return [count + int(more) for count, more in zip(counts, added, strict=True)]


def _sum(counts: Mapping[Any, int], more: Mapping[Any, int]) -> dict[Any, int]:
    return dict(Counter(counts) + Counter(more))


def _stratum_values(table: pa.Table) -> Iterator[tuple[str, list[str]]]:
    """The columns of `STRATA` that a table has, with their values as text; missing values are empty."""
    for column in STRATA:
        if column in table.column_names:
            yield column, ["" if value is None else str(value) for value in table[column].to_pylist()]
