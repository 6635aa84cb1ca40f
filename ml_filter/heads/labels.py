"""Labelled documents: a source with label columns, or aggregated scores joined with their documents."""

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
from ml_filter.documents.tables import list_items, number_column
from ml_filter.documents.unique import find_documents
from ml_filter.errors import InputError
from ml_filter.prepare.minhash import band_keys, rows_per_band, signatures
from ml_filter.prepare.ngrams import words
from ml_filter.prepare.split import group_documents, host_of, name_keys
from ml_filter.statistics.intervals import Array
from ml_filter.statistics.rounding import ROUNDING_VARIANCE

STRATA = ("language", "source", "host")
_PERMUTATIONS = 128

_Scores = dict[str, tuple[list[float], list[float]]]
"""Labels and weights of each document, by criterion; NaN: no label."""


@dataclass(frozen=True)
class Labelled:
    """A chunk of labelled documents as columns. Labels (NaN: no label) and weights are [documents, criteria]."""

    ids: Sequence[str]
    texts: Sequence[str]
    labels: Array
    weights: Array
    strata: Mapping[str, Sequence[str | None]]

    @property
    def groups(self) -> list[str]:
        """The host of each document, or a hash of its text; `Groups` joins near-duplicates."""
        hosts = self.strata.get("host") or [None] * len(self.texts)
        return [host or text_id(text) for host, text in zip(hosts, self.texts, strict=True)]


class Groups:
    """Documents that must be on the same side of every split: those of one host, repeated texts and near-duplicates,
    directly or through other documents.

    Takes 8 bytes of memory for each document and for each band of its signature (16 at a similarity of 0.8).

    Args:
        near_duplicates: estimated Jaccard similarity of word 5-grams from which documents belong together.
    """

    def __init__(self, near_duplicates: float) -> None:
        self._rows = rows_per_band(near_duplicates, _PERMUTATIONS)
        self._keys: list[NDArray[np.uint64]] = []

    def add(self, chunk: Labelled) -> None:
        """Add the next documents."""
        bands = band_keys(signatures(chunk.texts, _PERMUTATIONS, 0), self._rows)
        self._keys.append(np.column_stack([name_keys(chunk.groups, 0), bands]))

    def draw(self, keys: Sequence[int]) -> NDArray[np.uint64]:
        """A number for the group of each document [documents]: the smallest of its documents' random `keys`."""
        first = group_documents(np.concatenate(self._keys))
        numbers = np.full(len(first), np.iinfo(np.uint64).max, dtype=np.uint64)
        np.minimum.at(numbers, first, np.array(keys, dtype=np.uint64))
        return numbers[first]


class LabelledDocuments:
    """Streams the documents with a label of at least one criterion, and counts those without.

    `criteria` are those of the labels. They come from the manifest if the labels are aggregated scores or a published
    data set. Otherwise each label column is a criterion with `score_range` and `threshold`.

    Args:
        labels: documents with the label columns, or a directory of aggregated scores.
        label_columns: the columns of the labels.
        documents: the documents of aggregated scores (default: those that were annotated).
        criteria: which aggregated scores to take (default: all).
        trust_agreement: weight a label by the agreement of its votes: 1 / (1 + v), with v the variance of their mean
            and 1 for the error of the model. The variance of a document's votes is combined with that of one more vote,
            which has the variance within all documents of the criterion, at least 1/12 (a scaled inverse chi-squared
            prior with one degree of freedom; Gelman et al. 2013, section 2.6). So a single vote has some variance, too.
        score_range: lowest and highest label, only if no manifest defines them (default: `DEFAULT_CRITERION`).
        threshold: overrides that of the criteria.

    Raises:
        InputError: labels, documents or criteria cannot be found, `score_range` contradicts the manifest, or
            `trust_agreement` is set but no document has several votes.
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
        chosen = [criteria] if isinstance(criteria, str) else criteria or []
        self._columns = [label_columns] if isinstance(label_columns, str) else list(label_columns)
        self.unlabelled = 0
        self.lineage: list[dict[str, object]] = []
        self._scores: _Scores | None = None
        paths = ", ".join(labels.paths)
        manifest = find_source_manifest(labels.paths[0]) if len(labels.paths) == 1 else None
        if manifest is not None and manifest.kind == "scores":
            self.criteria = [only_criterion(manifest, name) for name in chosen] or criteria_of(manifest)
            self.lineage = [run for name in self.names for run in annotation_runs(manifest, name)]
            self._scores = _read_scores(manifest, self.names, trust_agreement)
            self.source = documents or annotated_documents(manifest)
        else:
            columns = self._item_columns(labels)
            if chosen and (columns == self._columns or len(columns) != len(chosen)):
                raise InputError(
                    f"{paths} has no aggregated scores to choose criteria from ({', '.join(chosen)}); choose label "
                    f"columns, or name all items of a column of lists ({', '.join(columns)})"
                )
            if trust_agreement:
                raise InputError(
                    f"trust_agreement requires aggregated scores, and {paths} has none; leave it out, or use a "
                    "directory made by ml-filter aggregate"
                )
            self._columns = columns
            published = _published_criteria(manifest) if manifest is not None and manifest.kind == "labelled" else {}
            self.criteria = [
                published.get(name) or Criterion.of_labels(name, score_range, threshold)
                for name in chosen or self._columns
            ]
            self.source = labels
        self.criteria = [_override(criterion, score_range, threshold, paths) for criterion in self.criteria]
        self._shards, self.parents = list_shards(self.source)
        if manifest is not None and self._scores is not None:
            self.parents.append(Parent(path=manifest.root, digest=manifest.digest))

    @property
    def names(self) -> list[str]:
        """Names of the criteria, in the order of the labels' columns."""
        return [criterion.name for criterion in self.criteria]

    def __iter__(self) -> Iterator[Labelled]:
        self.unlabelled = 0
        if self._scores is None:
            for shard in self._shards:
                yield from map(self._chunk, read_shard(shard, self.source, RejectsLog()))
            return
        seen: set[str] = set()
        for table in find_documents(self._shards, self.source, self._scores):
            # An annotated document counts once, even if several sources have it.
            yield self._chunk(_without_seen(table, seen))

    def _chunk(self, table: pa.Table) -> Labelled:
        labels = np.full((table.num_rows, len(self.criteria)), np.nan)
        weights = np.ones_like(labels)
        if self._scores is None:
            for column, name in enumerate(self._columns):
                labels[:, column] = self._label_column(table, name)
        else:
            for row, document_id in enumerate(table["id"].to_pylist()):
                if document_id in self._scores:
                    labels[row], weights[row] = self._scores[document_id]
        is_labelled = ~np.isnan(labels).all(axis=1)
        self.unlabelled += int((~is_labelled).sum())
        table = table.filter(pa.array(is_labelled))
        strata = {name: table[name].to_pylist() for name in STRATA if name in table.column_names}
        if "url" in table.column_names:
            strata["host"] = list(map(host_of, table["url"].to_pylist()))
        ids, texts = table["id"].to_pylist(), table["text"].to_pylist()
        return Labelled(ids, texts, labels[is_labelled], weights[is_labelled], strata)

    def _item_columns(self, labels: SourceConfig) -> list[str]:
        """The label columns, with one name for each item of a column of lists."""
        for shard in list_shards(labels)[0]:
            for table in read_shard(shard, labels, RejectsLog()):
                return [item for name in self._columns for item in list_items(table, name)]
        return self._columns

    def _label_column(self, table: pa.Table, name: str) -> Array:
        try:
            values: Array = number_column(table, name).to_numpy()
        except InputError as error:
            raise InputError(f"labels in {', '.join(self.source.paths)}: {error}") from error
        return values


def _published_criteria(manifest: Manifest) -> dict[str, Criterion]:
    """The criteria of a published data set, by the column of their scores."""
    criteria = criteria_of(manifest)
    return {"score" if len(criteria) == 1 else f"score_{criterion.name}": criterion for criterion in criteria}


def _override(
    criterion: Criterion, score_range: tuple[float, float] | None, threshold: float | None, paths: str
) -> Criterion:
    """The criterion with the threshold of the user.

    Raises:
        InputError: the score range of the user is not that of the criterion.
    """
    if score_range not in (None, criterion.bounds):
        raise InputError(
            f"{paths} has scores of {criterion.name} from {criterion.low:g} to {criterion.high:g}, not from "
            f"{score_range[0]:g} to {score_range[1]:g}; leave score_range out"
        )
    return criterion if threshold is None else criterion.model_copy(update={"threshold": threshold})


def _without_seen(table: pa.Table, seen: set[str]) -> pa.Table:
    """The documents whose ids are not in `seen`, each once; their ids are added to it."""
    is_new = []
    for document_id in table["id"].to_pylist():
        is_new.append(document_id not in seen)
        seen.add(document_id)
    return table.filter(pa.array(is_new, pa.bool_()))


def text_keys(texts: Sequence[str]) -> NDArray[np.uint64]:
    """A hash of the words of each text, independent of case, punctuation and white space."""
    normalized = (" ".join(words(text)).encode("utf-8", "surrogatepass") for text in texts)
    keys = b"".join(hashlib.blake2b(text, digest_size=8).digest() for text in normalized)
    return np.frombuffer(keys, dtype="<u8").astype(np.uint64)


def _read_scores(manifest: Manifest, criteria: Sequence[str], trust_agreement: bool) -> _Scores:
    tables = []
    for path in manifest.shard_paths():
        with fsspec.open(path, "rb") as file:
            columns = ["document_id", "criterion", "score", "votes", "disagreement"]
            tables.append(pq.read_table(file, columns=columns, filters=pc.field("score").is_valid()))
    table = pa.concat_tables(tables)
    scores: _Scores = {}
    for column, name in enumerate(criteria):
        rows = table.filter(pc.field("criterion") == name)
        weights = np.ones(len(rows))
        if trust_agreement:
            weights = _agreement_weights(rows, f"{name} in {manifest.root}")
        for document_id, score, weight in zip(
            rows["document_id"].to_pylist(), rows["score"].to_pylist(), weights.tolist(), strict=True
        ):
            labels_of, weights_of = scores.setdefault(document_id, ([math.nan] * len(criteria), [1.0] * len(criteria)))
            labels_of[column], weights_of[column] = score, weight
    return scores


def _agreement_weights(rows: pa.Table, name: str) -> Array:
    """The weight of each score, as described for `trust_agreement` of `LabelledDocuments`."""
    votes = np.maximum(rows["votes"].to_numpy(), 1).astype(np.float64)
    squares = votes * pc.fill_null(rows["disagreement"], 0.0).to_numpy() ** 2
    several = votes > 1
    if not several.any():
        raise InputError(
            f"trust_agreement requires several votes for a document, but none has them for {name}; leave it out, or "
            "annotate with more votes or annotators"
        )
    prior = max(squares[several].sum() / (votes - 1)[several].sum(), ROUNDING_VARIANCE)
    weights: Array = 1 / (1 + (prior + squares) / votes**2)
    return weights
