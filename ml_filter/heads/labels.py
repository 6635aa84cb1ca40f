"""Labelled documents: read from a source with label columns, or from aggregated scores joined with their documents;
split into training and test documents; and checked."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from loguru import logger
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
from ml_filter.heads.config import TrainConfig
from ml_filter.heads.profile import script_of
from ml_filter.location import Location
from ml_filter.prepare.minhash import band_keys, rows_per_band, signatures
from ml_filter.prepare.ngrams import words
from ml_filter.prepare.sampling import sampling_key
from ml_filter.prepare.split import group_documents, host_of, name_keys
from ml_filter.progress import progress
from ml_filter.statistics.intervals import Array
from ml_filter.statistics.rounding import ROUNDING_VARIANCE

STRATA = ("language", "source", "host")
MIN_LABELS = 10
_FEW_LABELS = 100
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

    Near-duplicates have an estimated Jaccard similarity of word 5-grams of at least `near_duplicates`. Takes 8 bytes of
    memory for each document and for each band of its signature (16 at a similarity of 0.8).
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
        config: its `label_column`, `criterion`, `trust_agreement`, `score_range` and `threshold` apply.
        documents: the documents of aggregated scores (default: those that were annotated).

    Raises:
        InputError: labels, documents or criteria cannot be found, `score_range` contradicts the manifest, or
            `trust_agreement` is set but no document has several votes.
    """

    def __init__(self, labels: SourceConfig, config: TrainConfig, documents: SourceConfig | None = None) -> None:
        chosen, self._columns = _names(config.criterion), _names(config.label_column)
        self.unlabelled = 0
        self.lineage: list[dict[str, object]] = []
        self._scores: _Scores | None = None
        paths = ", ".join(labels.paths)
        manifest = find_source_manifest(labels.paths[0]) if len(labels.paths) == 1 else None
        if manifest is not None and manifest.kind == "scores":
            self.criteria = [only_criterion(manifest, name) for name in chosen] or criteria_of(manifest)
            self.lineage = [run for name in self.names for run in annotation_runs(manifest, name)]
            self._scores = _read_scores(manifest, self.names, config.trust_agreement)
            self.source = documents or annotated_documents(manifest)
        else:
            columns = self._item_columns(labels)
            if chosen and (columns == self._columns or len(columns) != len(chosen)):
                raise InputError(
                    f"{paths} has no aggregated scores to choose criteria from ({', '.join(chosen)}); choose label "
                    f"columns, or name all items of a column of lists ({', '.join(columns)})"
                )
            if config.trust_agreement:
                raise InputError(
                    f"trust_agreement requires aggregated scores, and {paths} has none; leave it out, or use a "
                    "directory made by ml-filter aggregate"
                )
            self._columns = columns
            published = _published_criteria(manifest) if manifest is not None and manifest.kind == "labelled" else {}
            self.criteria = [
                published.get(name) or Criterion.of_labels(name, config.score_range, config.threshold)
                for name in chosen or self._columns
            ]
            self.source = labels
        self.criteria = [_override(criterion, config, paths) for criterion in self.criteria]
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
        values: Array = number_column(table, name, f"labels in {', '.join(self.source.paths)}").to_numpy()
        return values


def _published_criteria(manifest: Manifest) -> dict[str, Criterion]:
    """The criteria of a published data set, by the column of their scores."""
    criteria = criteria_of(manifest)
    return {"score" if len(criteria) == 1 else f"score_{criterion.name}": criterion for criterion in criteria}


def _names(names: str | list[str] | None) -> list[str]:
    return [names] if isinstance(names, str) else names or []


def _override(criterion: Criterion, config: TrainConfig, paths: str) -> Criterion:
    """The criterion with the threshold of the user, whose score range must be that of the criterion."""
    if config.score_range is not None and config.score_range != criterion.bounds:
        low, high = config.score_range
        raise InputError(
            f"{paths} has scores of {criterion.name} from {criterion.low:g} to {criterion.high:g}, not from "
            f"{low:g} to {high:g}; leave score_range out"
        )
    return criterion if config.threshold is None else criterion.model_copy(update={"threshold": config.threshold})


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
        with Location(path).open() as file:
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
    """The weight of each score: 1 / (1 + v), with v the variance of the mean of its votes, and 1 for the error of the
    model.

    The variance of a document's votes is combined with that of one more vote, which has the variance within all
    documents of the criterion, at least 1/12 (a scaled inverse chi-squared prior with one degree of freedom; Gelman et
    al. 2013, section 2.6). So a single vote has some variance, too.
    """
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


@dataclass(frozen=True)
class LabelTable:
    """Columns over all labelled documents.

    Labels (NaN: no label) and weights are [documents, criteria]. A document has the number of its group (see `Groups`),
    the length of its text in UTF-8, its writing system, and its `text_keys`.
    """

    labels: Array
    weights: Array
    is_test: NDArray[np.bool_]
    groups: NDArray[np.uint64]
    bytes: NDArray[np.int64]
    scripts: NDArray[np.str_]
    texts: NDArray[np.uint64]


def read_label_table(
    data: LabelledDocuments, consumers: Iterable[Callable[[Sequence[str]], None]], config: TrainConfig
) -> LabelTable:
    """Pass all texts to the consumers, chunk by chunk, and keep everything else. InputError: no labels."""
    labels, weights, texts = [], [], []
    keys: list[int] = []
    lengths: list[int] = []
    scripts: list[str] = []
    groups = Groups(config.near_duplicates)
    with progress(f"Reading labelled documents ({config.kind})") as bar:
        for chunk in data:
            for consume in consumers:
                consume(chunk.texts)
            groups.add(chunk)
            labels.append(chunk.labels)
            weights.append(chunk.weights)
            keys += [sampling_key(group, config.seed, "test") for group in chunk.groups]
            lengths += [len(text.encode("utf-8", "surrogatepass")) for text in chunk.texts]
            scripts += map(script_of, chunk.texts)
            texts.append(text_keys(chunk.texts))
            bar.advance(len(chunk.ids))
    if not keys:
        raise InputError(f"no document has a label of {', '.join(data.names)}")
    group_of = groups.draw(keys)
    return LabelTable(
        labels=np.concatenate(labels),
        weights=np.concatenate(weights),
        is_test=choose_test_documents(group_of, config.test_share),
        groups=group_of,
        bytes=np.array(lengths),
        scripts=np.array(scripts),
        texts=np.concatenate(texts),
    )


def choose_test_documents(groups: NDArray[np.uint64], share: float) -> NDArray[np.bool_]:
    """Which documents [n] are for the test, by the number [n] of their groups.

    Groups stay whole. The one with the smallest number comes first; each is taken if it brings the number of test
    documents closer to `share`, so that a few large groups do not all end up on one side.
    """
    _, group_of, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    taken, target, chosen = 0, share * len(groups), np.zeros(len(sizes), bool)
    for group, size in enumerate(sizes.tolist()):
        if abs(taken + size - target) < abs(taken - target) and taken + size < len(groups):
            chosen[group] = True
            taken += size
    is_test: NDArray[np.bool_] = chosen[group_of]
    return is_test


def check_labels(table: LabelTable, criteria: Sequence[Criterion]) -> None:
    """Raise InputError for a criterion whose labels are too few, outside its score range, or identical."""
    for column, criterion in enumerate(criteria):
        labelled = ~np.isnan(table.labels[:, column])
        values, is_test = table.labels[labelled, column], table.is_test[labelled]
        suffix = f" of {criterion.name}" if len(criteria) > 1 else ""
        if len(values) < MIN_LABELS:
            raise InputError(
                f"too few labels{suffix}: {len(values)} ({int(is_test.sum())} of them for the test); at least "
                f"{MIN_LABELS} are required, and thousands are better"
            )
        if len(values) < _FEW_LABELS:
            logger.warning(
                f"Only {len(values)} labels{suffix}: enough to try the pipeline, but the head and its figures are not "
                "reliable; label thousands of documents"
            )
        if is_test.all() or not is_test.any():
            count = len(np.unique(table.groups[labelled]))
            raise InputError(
                f"the {len(values):,} labelled documents{suffix} are from {count} host{'s' * (count > 1)} or "
                f"group{'s' * (count > 1)} of near-duplicates, which are never split, so none is left for "
                f"{'training' if is_test.all() else 'the test'}; add labels from more hosts, ideally hundreds"
            )
        outside = (values < criterion.low) | (values > criterion.high)
        if outside.any():
            raise InputError(
                f"{int(outside.sum())} labels{suffix} are outside the score range {criterion.low:g} to "
                f"{criterion.high:g} (the first is {values[outside][0]:g}); set score_range (--score-range LOW HIGH)"
            )
        if len(np.unique(values[~is_test])) < 2:
            raise InputError(f"all labels{suffix} are {values[0]:g}, so there is nothing to learn")


def check_folds(labels: Array, folds: NDArray[np.int64], criteria: Sequence[Criterion]) -> None:
    """Raise InputError for a criterion whose labels [documents, criteria] are all in one of the folds [documents]."""
    for column, criterion in enumerate(criteria):
        labelled = ~np.isnan(labels[:, column])
        if len(np.unique(folds[labelled])) < 2:
            raise InputError(
                f"all {int(labelled.sum()):,} training documents with a label of {criterion.name} are in one fold, "
                "because they are from one or a few hosts or nearly the same, so they cannot be cross-validated; add "
                "labels from more hosts, or leave the criterion out"
            )
