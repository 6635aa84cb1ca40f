"""Labelled documents: a source with a label column, or aggregated scores joined with their documents."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from ml_filter.documents.manifest import Manifest, Parent, find_manifest
from ml_filter.documents.readers import read_shard
from ml_filter.documents.rejects import RejectsLog
from ml_filter.documents.sources import list_shards
from ml_filter.errors import InputError
from ml_filter.settings import SourceConfig


@dataclass(frozen=True)
class Labelled:
    """A chunk of labelled documents, column by column."""

    ids: Sequence[str]
    texts: Sequence[str]
    labels: Sequence[float]


class LabelledDocuments:
    """Streams documents that have a label; counts those without.

    Args:
        labels: documents with `label_column`, or a directory of aggregated scores.
        label_column: the column that holds the label.
        documents: the documents of aggregated scores; not given: those that were annotated, by lineage.

    Raises:
        InputError: labels or documents cannot be found.
    """

    def __init__(self, labels: SourceConfig, label_column: str, documents: SourceConfig | None = None) -> None:
        self.label_column = label_column
        self.unlabelled = 0
        self.lineage: list[dict[str, object]] = []
        self._scores: dict[str, float] | None = None
        manifest = find_manifest(labels.paths[0]) if len(labels.paths) == 1 and "//" not in labels.paths[0] else None
        if manifest is not None and manifest.kind == "scores":
            self.lineage = _lineage(manifest)
            self._scores = _read_scores(manifest)
            documents = documents or SourceConfig(paths=[_annotated_documents(manifest)])
        self.source = documents if self._scores is not None and documents else labels
        self._shards, self.parents = list_shards(self.source)
        if manifest is not None and self._scores is not None:
            self.parents.append(Parent(path=manifest.root, digest=manifest.digest))

    def __iter__(self) -> Iterator[Labelled]:
        self.unlabelled = 0
        for shard in self._shards:
            for table in read_shard(shard, self.source, RejectsLog()):
                yield self._chunk(table)

    def _chunk(self, table: pa.Table) -> Labelled:
        ids, texts = table["id"].to_pylist(), table["text"].to_pylist()
        if self._scores is not None:
            labels = [self._scores.get(document_id) for document_id in ids]
        elif self.label_column in table.column_names:
            try:
                labels = table[self.label_column].cast(pa.float64()).to_pylist()
            except pa.ArrowInvalid as error:
                raise InputError(f"label column {self.label_column!r} is no column of numbers: {error}") from error
        else:
            raise InputError(
                f"{', '.join(self.source.paths)} has no label column {self.label_column!r}; "
                f"it has {', '.join(table.column_names)}"
            )
        kept = [
            (document_id, text, float(label))
            for document_id, text, label in zip(ids, texts, labels, strict=True)
            if label is not None and not math.isnan(label)
        ]
        self.unlabelled += len(labels) - len(kept)
        return Labelled([row[0] for row in kept], [row[1] for row in kept], [row[2] for row in kept])


def _read_scores(manifest: Manifest) -> dict[str, float]:
    scores: dict[str, float] = {}
    criteria: set[str] = set()
    for path in manifest.shard_paths():
        for batch in pq.ParquetFile(path).iter_batches(columns=["document_id", "criterion", "score"]):
            criteria.update(batch.column("criterion").to_pylist())
            pairs = zip(batch.column("document_id").to_pylist(), batch.column("score").to_pylist(), strict=True)
            scores.update((document_id, score) for document_id, score in pairs if score is not None)
    if len(criteria) > 1:
        raise InputError(f"{manifest.root} holds scores of {', '.join(sorted(criteria))}; train on one criterion")
    return scores


def _ancestors(manifest: Manifest) -> Iterator[Manifest]:
    for parent in manifest.parents:
        found = find_manifest(parent.path) if "//" not in parent.path and not parent.path.endswith(":") else None
        if found is not None and found.digest == parent.digest:
            yield found
            yield from _ancestors(found)


def _lineage(manifest: Manifest) -> list[dict[str, object]]:
    """What made the labels: prompt, prompt digest and judge of each annotation run."""
    keys = ("criterion", "prompt", "prompt_digest", "annotator", "votes", "score_range")
    return [{k: m.config[k] for k in keys} for m in _ancestors(manifest) if m.kind == "annotations"]


def _annotated_documents(manifest: Manifest) -> str:
    for ancestor in _ancestors(manifest):
        if ancestor.kind == "annotations":
            paths: list[str] = ancestor.config["source"]["paths"]
            if len(paths) == 1:
                return paths[0]
    raise InputError(f"{manifest.root} holds scores without text; give the documents they belong to with --documents")
