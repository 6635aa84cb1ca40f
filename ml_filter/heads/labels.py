"""Labelled documents: a source with a label column, or aggregated scores joined with their documents."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ml_filter.documents.lineage import annotated_documents, annotation_runs, only_criterion
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
        criterion: which of the aggregated scores; not given: the only ones.

    Raises:
        InputError: labels or documents cannot be found, or there are several criteria and none is chosen.
    """

    def __init__(
        self,
        labels: SourceConfig,
        label_column: str,
        documents: SourceConfig | None = None,
        criterion: str | None = None,
    ) -> None:
        self.label_column = label_column
        self.unlabelled = 0
        self.lineage: list[dict[str, object]] = []
        self._scores: dict[str, float] | None = None
        manifest = find_manifest(labels.paths[0]) if len(labels.paths) == 1 and "//" not in labels.paths[0] else None
        if manifest is not None and manifest.kind == "scores":
            criterion = only_criterion(manifest, criterion)
            self.lineage = annotation_runs(manifest, criterion)
            self._scores = _read_scores(manifest, criterion)
            documents = documents or annotated_documents(manifest)
        elif criterion is not None:
            raise InputError(
                f"a criterion ({criterion}) is chosen, but {', '.join(labels.paths)} holds no aggregated scores; "
                "choose the column of the label"
            )
        self.source = documents if self._scores is not None and documents else labels
        self._shards, self.parents = list_shards(self.source)
        if manifest is not None and self._scores is not None:
            self.parents.append(Parent(path=manifest.root, digest=manifest.digest))

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


def _first_time(ids: Sequence[str], seen: set[str]) -> list[bool]:
    new = []
    for document_id in ids:
        new.append(document_id not in seen)
        seen.add(document_id)
    return new


def _read_scores(manifest: Manifest, criterion: str) -> dict[str, float]:
    scores: dict[str, float] = {}
    for path in manifest.shard_paths():
        for batch in pq.ParquetFile(path).iter_batches(columns=["document_id", "criterion", "score"]):
            wanted = pc.and_(pc.equal(batch.column("criterion"), criterion), pc.is_valid(batch.column("score")))
            rows = batch.filter(wanted)
            scores.update(zip(rows.column("document_id").to_pylist(), rows.column("score").to_pylist(), strict=True))
    return scores
