"""Labelled documents: a source with a label column, or aggregated scores joined with their documents."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ml_filter.criterion import Criterion
from ml_filter.documents.config import SourceConfig
from ml_filter.documents.lineage import (
    annotated_documents,
    annotation_runs,
    criteria_of,
    find_source_manifest,
    only_criterion,
)
from ml_filter.documents.manifest import Manifest, Parent
from ml_filter.documents.readers import read_shard, text_id
from ml_filter.documents.rejects import RejectsLog
from ml_filter.documents.sources import list_shards
from ml_filter.errors import InputError
from ml_filter.prepare.minhash import band_keys, rows_per_band, signatures
from ml_filter.prepare.ngrams import words
from ml_filter.prepare.split import group_documents, host_of, name_keys
from ml_filter.statistics.rounding import ROUNDING_VARIANCE

STRATA = ("language", "source", "host")
_PERMUTATIONS = 128


@dataclass(frozen=True)
class Labelled:
    """A chunk of labelled documents, column by column; labels and weights are [documents, criteria], nan: no label."""

    ids: Sequence[str]
    texts: Sequence[str]
    labels: NDArray[np.float64]
    weights: NDArray[np.float64]
    strata: Mapping[str, Sequence[str | None]]

    @property
    def groups(self) -> list[str]:
        """The host of each document, or a hash of its text; `Groups` joins those that are nearly the same."""
        hosts = self.strata.get("host") or [None] * len(self.texts)
        return [host or text_id(text) for host, text in zip(hosts, self.texts, strict=True)]


class Groups:
    """Which documents must not stand on both sides of a split: those of one host, repeated ones and near-duplicates,
    directly or through others.

    Memory holds 8 bytes a document, and 8 for each band of its signature: 16 bands at a similarity of 0.8.

    Args:
        near_duplicates: estimated Jaccard similarity of word 5-grams from which on documents belong together.
    """

    def __init__(self, near_duplicates: float) -> None:
        self._rows = rows_per_band(near_duplicates, _PERMUTATIONS)
        self._keys: list[NDArray[np.uint64]] = []

    def add(self, chunk: Labelled) -> None:
        """Take up the next documents."""
        bands = band_keys(signatures(chunk.texts, _PERMUTATIONS, 0), self._rows)
        self._keys.append(np.column_stack([name_keys(chunk.groups, 0), bands]))

    def draw(self, keys: Sequence[int]) -> NDArray[np.uint64]:
        """A random number [documents] for each group: the smallest of its documents' own."""
        first = group_documents(np.concatenate(self._keys))
        drawn = np.full(len(first), np.iinfo(np.uint64).max, dtype=np.uint64)
        np.minimum.at(drawn, first, np.array(keys, dtype=np.uint64))
        return drawn[first]


class LabelledDocuments:
    """Streams documents that have a label of at least one criterion; counts those without.

    Args:
        labels: documents with the label columns, or a directory of aggregated scores.
        label_columns: the column, or columns, that hold the labels; the criteria are named after them.
        documents: the documents of aggregated scores; not given: those that were annotated, by lineage.
        criteria: which of the aggregated scores; not given: all of them.
        trust_agreement: weight a label by how well its votes agree: 1 / (1 + v), the inverse variance of the votes'
            mean, v, beside a model error of 1 score. The variance of a document's votes is taken together with one
            vote's worth of that within all documents of the criterion, at least 1/12 (a scaled inverse chi-squared
            prior of one degree of freedom; Gelman et al. 2013, section 2.6): a single vote does not agree with itself.

    Raises:
        InputError: labels or documents cannot be found, criteria are chosen that are not there, or agreement is to be
            trusted where no document has several votes.
    """

    def __init__(
        self,
        labels: SourceConfig,
        label_columns: str | Sequence[str],
        documents: SourceConfig | None = None,
        criteria: str | Sequence[str] | None = None,
        trust_agreement: bool = False,
        score_range: tuple[float, float] | None = None,
        threshold: float | None = None,
    ) -> None:
        criteria = [criteria] if isinstance(criteria, str) else criteria or []
        self._columns = [label_columns] if isinstance(label_columns, str) else list(label_columns)
        self.criteria: list[Criterion] = []
        self.unlabelled = 0
        self.lineage: list[dict[str, object]] = []
        self._scores: dict[str, _Score] | None = None
        manifest = find_source_manifest(labels.paths[0]) if len(labels.paths) == 1 else None
        if manifest is not None and manifest.kind == "scores":
            self.criteria = [only_criterion(manifest, name) for name in criteria] or criteria_of(manifest)
            self.lineage = [run for name in self.names for run in annotation_runs(manifest, name)]
            self._scores = _read_scores(manifest, self.names, trust_agreement)
            documents = documents or annotated_documents(manifest)
        elif criteria:
            raise InputError(
                f"criteria ({', '.join(criteria)}) are chosen, but {', '.join(labels.paths)} holds no aggregated "
                "scores; choose the columns of the labels"
            )
        elif trust_agreement:
            raise InputError(
                f"trust_agreement weighs aggregated scores by their votes, and {', '.join(labels.paths)} holds none; "
                "leave it out, or give the directory that ml-filter aggregate writes"
            )
        known = _published(manifest) if manifest is not None and manifest.kind == "labelled" else {}
        for column in () if self.criteria else self._columns:
            self.criteria.append(known.get(column) or Criterion.of_labels(column, score_range, threshold))
        self.criteria = [_checked(criterion, score_range, threshold, labels) for criterion in self.criteria]
        self.source = documents if self._scores is not None and documents else labels
        self._shards, self.parents = list_shards(self.source)
        if manifest is not None and self._scores is not None:
            self.parents.append(Parent(path=manifest.root, digest=manifest.digest))

    @property
    def names(self) -> list[str]:
        """Names of the criteria, in the order of the labels' columns."""
        return [criterion.name for criterion in self.criteria]

    def __iter__(self) -> Iterator[Labelled]:
        self.unlabelled = 0
        seen: set[str] = set()
        for shard in self._shards:
            for table in read_shard(shard, self.source, RejectsLog()):
                if self._scores is None:
                    yield self._chunk(table)
                else:  # annotated once, trained on once, though several sources may hold it
                    yield self._chunk(table.filter(pa.array(_first_time(table["id"].to_pylist(), seen), pa.bool_())))

    def _chunk(self, table: pa.Table) -> Labelled:
        labels = np.full((table.num_rows, len(self.criteria)), np.nan)
        weights = np.ones_like(labels)
        for row, document_id in enumerate(table["id"].to_pylist() if self._scores is not None else ()):
            assert self._scores is not None
            if document_id in self._scores:
                labels[row], weights[row] = self._scores[document_id]
        if self._scores is None:
            for place, name in enumerate(self._columns):
                labels[:, place] = self._column(table, name)
        known = ~np.isnan(labels).all(axis=1)
        self.unlabelled += int((~known).sum())
        kept = table.filter(pa.array(known))
        strata = {name: kept[name].to_pylist() for name in STRATA if name in kept.column_names}
        if "url" in kept.column_names:
            strata["host"] = list(map(host_of, kept["url"].to_pylist()))
        return Labelled(kept["id"].to_pylist(), kept["text"].to_pylist(), labels[known], weights[known], strata)

    def _column(self, table: pa.Table, name: str) -> NDArray[np.float64]:
        if name not in table.column_names:
            raise InputError(
                f"{', '.join(self.source.paths)} has no label column {name!r}; it has {', '.join(table.column_names)}"
            )
        try:
            column = table[name].cast(pa.float64()).to_numpy()
        except pa.ArrowInvalid as error:
            raise InputError(f"label column {name!r} is no column of numbers: {error}") from error
        values: NDArray[np.float64] = column
        return values


def _published(labelled: Manifest) -> dict[str, Criterion]:
    """The criteria of a published data set, by the column that holds their scores."""
    criteria = criteria_of(labelled)
    return {f"score_{one.name}": one for one in criteria} if len(criteria) > 1 else {"score": criteria[0]}


def _checked(
    criterion: Criterion, score_range: tuple[float, float] | None, threshold: float | None, labels: SourceConfig
) -> Criterion:
    """The criterion with the threshold that was given; its range cannot be chosen where the labels define it."""
    if score_range not in (None, criterion.bounds):
        raise InputError(
            f"{', '.join(labels.paths)} has scores of {criterion.name} from {criterion.low:g} to {criterion.high:g}, "
            f"not from {score_range[0]:g} to {score_range[1]:g}: leave score_range out"
        )
    return criterion if threshold is None else criterion.model_copy(update={"threshold": threshold})


def _first_time(ids: Sequence[str], seen: set[str]) -> list[bool]:
    new = []
    for document_id in ids:
        new.append(document_id not in seen)
        seen.add(document_id)
    return new


def text_keys(texts: Sequence[str]) -> NDArray[np.uint64]:
    """A hash of the words of each text: the same whatever its case, punctuation and spacing."""
    said = (" ".join(words(text)).encode("utf-8", "surrogatepass") for text in texts)
    keys = b"".join(hashlib.blake2b(text, digest_size=8).digest() for text in said)
    return np.frombuffer(keys, dtype="<u8").astype(np.uint64)


_Score = tuple[list[float], list[float]]
"""Labels and weights of a document, by criterion."""


def _read_scores(manifest: Manifest, criteria: Sequence[str], trust_agreement: bool) -> dict[str, _Score]:
    scores: dict[str, _Score] = {}
    places = {name: place for place, name in enumerate(criteria)}
    spreads: list[list[_Spread]] = [[] for _ in criteria]
    columns = ["document_id", "criterion", "score", "votes", "disagreement"]
    for path in manifest.shard_paths():
        with fsspec.open(path, "rb") as file:
            for batch in pq.ParquetFile(file).iter_batches(columns=columns):
                for row in batch.filter(pc.is_valid(batch.column("score"))).to_pylist():
                    place = places.get(row["criterion"])
                    if place is None:
                        continue
                    labels, weights = scores.setdefault(
                        row["document_id"], ([math.nan] * len(criteria), [1.0] * len(criteria))
                    )
                    labels[place] = row["score"]
                    if trust_agreement:
                        spreads[place].append((weights, max(row["votes"], 1), row["disagreement"] or 0.0))
    if trust_agreement:
        for place, name in enumerate(criteria):
            _weigh(spreads[place], place, f"{name} in {manifest.root}")
    return scores


_Spread = tuple[list[float], int, float]
"""The weights of a document, its votes and their standard deviation."""


def _weigh(spreads: Sequence[_Spread], place: int, of: str) -> None:
    """Set the weights of a criterion, as `LabelledDocuments` says of `trust_agreement`."""
    votes = np.array([count for _, count, _ in spreads], dtype=np.float64)
    squares = votes * np.array([deviation for *_, deviation in spreads]) ** 2
    several = votes > 1
    if not several.any():
        raise InputError(
            f"trust_agreement has nothing to go by: no document has several votes of {of}; leave it out, or annotate "
            "with several votes or annotators"
        )
    prior = max(squares[several].sum() / (votes - 1)[several].sum(), ROUNDING_VARIANCE)
    for (weights, *_), variance in zip(spreads, (prior + squares) / votes**2, strict=True):
        weights[place] = float(1 / (1 + variance))
