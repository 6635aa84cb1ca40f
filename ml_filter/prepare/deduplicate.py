"""Drop documents that repeat an earlier one: word for word, or nearly so by MinHash.

A document is dropped where an earlier document that is kept has the same text (Unicode NFC, any white space alike),
or shares a band of its MinHash signature with it and, by their whole signatures, an estimated Jaccard similarity of
word 5-grams of at least the threshold. So each dropped document is close to the one that is kept for it, and
deduplicating again drops nothing.

The corpus is read twice: to sign its documents, and to write those that are kept. Signatures lie in files beside the
output while it is made (648 bytes a document by default); memory holds about 60 bytes a document and 40 for each band
it shares with others (in all 350 bytes a document, measured on 400,000 of which 30% were duplicates).
"""

from __future__ import annotations

import hashlib
import json
import os
import unicodedata
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import BaseModel

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.dropping import KeptAndDropped, drop_documents, split_table
from ml_filter.documents.manifest import Manifest
from ml_filter.documents.output_directory import OutputDirectory
from ml_filter.documents.readers import InputShard, known_rows, read_shard
from ml_filter.documents.rejects import RejectsLog
from ml_filter.documents.sources import list_shards
from ml_filter.documents.tables import rename_clashing_columns
from ml_filter.documents.writer import write_atomically
from ml_filter.errors import InputError
from ml_filter.prepare.config import DeduplicateConfig
from ml_filter.prepare.minhash import Buckets, band_keys, first_of_cluster, rows_per_band, shared_buckets, signatures
from ml_filter.progress import progress

CLUSTER_COLUMN = "duplicate_cluster"
"""The id of the first document of those that share a band of their signatures, directly or through others."""
DUPLICATES_COLUMN = "duplicates"
DROPPED_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("kept_id", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),  # "exact" or "near"
        pa.field("similarity", pa.float32(), nullable=False),  # estimated Jaccard similarity of their word 5-grams
    ]
)


def deduplicate_documents(source: SourceConfig, config: DeduplicateConfig, output: str | Path) -> Manifest:
    """Write a corpus without its duplicates; of each set of duplicates the first in input order stays.

    Every input column, plus `duplicates` (how many were dropped in favour of the document) and `duplicate_cluster`
    (the same for documents that share a band of their signatures). `dropped/` says what was dropped for what.

    Raises:
        InputError: no document could be read, or the source changed while it was read.
    """
    shards, parents = list_shards(source)
    settings = {"source": source.model_dump(mode="json"), "deduplicate": config.model_dump(mode="json")}
    with OutputDirectory(output, "documents", settings, parents) as out:
        if out.manifest:
            return out.manifest
        prints = _Fingerprints(out.scratch, config)
        prints.add(shards, source)
        found = _find_duplicates(prints, config.threshold)
        named = found.named()
        names = prints.names(named)

        def name_of(numbers: NDArray[np.int64]) -> pa.Array:
            return names.take(pa.array(np.searchsorted(named, numbers)))

        def judge(shard: InputShard, offset: int, table: pa.Table) -> KeptAndDropped:
            first = prints.first(shard) + offset
            if offset + table.num_rows > prints.shards[shard.name]:
                raise InputError(f"{shard.uri} changed while it was read; delete {out.path} and start over")
            numbers = np.arange(first, first + table.num_rows)
            keep = found.kept_as[numbers] < 0
            kept, dropped_ids = split_table(table, keep)
            cluster = found.cluster[numbers[keep]]
            linked = cluster != numbers[keep]
            clusters = pc.replace_with_mask(kept["id"].combine_chunks(), pa.array(linked), name_of(cluster[linked]))
            kept = rename_clashing_columns(kept, (DUPLICATES_COLUMN, CLUSTER_COLUMN))
            kept = kept.append_column(DUPLICATES_COLUMN, pa.array(found.duplicates[numbers[keep]], pa.int64()))
            kept = kept.append_column(CLUSTER_COLUMN, clusters)
            dropped = numbers[~keep]
            columns = [
                dropped_ids,
                name_of(found.kept_as[dropped]),
                np.where(found.exact[dropped], "exact", "near").tolist(),
                found.similarity[dropped],
            ]
            return KeptAndDropped(kept, pa.table(columns, schema=DROPPED_SCHEMA))

        return drop_documents(out, shards, source, judge, DROPPED_SCHEMA, "Writing what is kept")


class _Duplicates(NamedTuple):
    """For each document, by number: the one that is kept for it (-1: itself), how alike they are, whether word for
    word, how many were dropped in its favour, and the first of its cluster."""

    kept_as: NDArray[np.int64]
    similarity: NDArray[np.float32]
    exact: NDArray[np.bool_]
    duplicates: NDArray[np.int64]
    cluster: NDArray[np.int64]

    def named(self) -> NDArray[np.int64]:
        """The documents whose ids stand in rows of others."""
        elsewhere = self.cluster[self.cluster != np.arange(len(self.cluster))]
        return np.unique(np.concatenate([self.kept_as[self.kept_as >= 0], elsewhere]))


class _Signed(BaseModel):
    """How far signing has come: the documents of each finished shard, the size of the file of ids in bytes."""

    shards: dict[str, int] = {}
    ids_size: int = 0


class _Fingerprints:
    """Keys, signatures and ids of all documents, in files that grow shard by shard; a killed run goes on with them.

    Keys are the hash of the exact text and, after it, those of the bands.
    """

    def __init__(self, directory: Path, config: DeduplicateConfig) -> None:
        self.config = config
        self.rows = rows_per_band(config.threshold, config.permutations)
        self.shards: dict[str, int] = {}
        self._ids_size = 0
        self._widths = {"keys": 8 * (1 + config.permutations // self.rows), "signatures": 4 * config.permutations}
        self._directory = directory

    def __len__(self) -> int:
        return sum(self.shards.values())

    def add(self, shards: Sequence[InputShard], source: SourceConfig) -> None:
        """Sign the documents of the shards that are not signed yet."""
        self._resume()
        with (
            self._file("keys").open("ab") as keys,
            self._file("signatures").open("ab") as signed,
            self._file("ids").open("ab") as ids,
            progress("Signing documents", known_rows(shards)) as bar,
        ):
            bar.advance(len(self))
            for shard in shards:
                if shard.name in self.shards:
                    continue
                rows = 0
                for table in read_shard(shard, source, RejectsLog()):
                    texts = table["text"].to_pylist()
                    signature = signatures(texts, self.config.permutations, self.config.seed)
                    exact = np.array([_exact_key(text) for text in texts], dtype=np.uint64)
                    keys.write(np.column_stack([exact, band_keys(signature, self.rows)]).tobytes())
                    signed.write(signature.tobytes())
                    self._ids_size += ids.write(_lines(table["id"].to_pylist()))
                    rows += table.num_rows
                    bar.advance(table.num_rows)
                for file in (keys, signed, ids):
                    file.flush()
                self.shards[shard.name] = rows
                self._save()

    def _file(self, name: str) -> Path:
        return self._directory / f"{name}.bin"

    def _save(self) -> None:
        signed = _Signed(shards=self.shards, ids_size=self._ids_size)
        write_atomically(self._directory / "signed.json", signed.model_dump_json().encode())

    def _resume(self) -> None:
        """Cut off what was written of a shard that was not finished."""
        state = self._directory / "signed.json"
        signed = _Signed.model_validate_json(state.read_text()) if state.exists() else _Signed()
        sizes = self._sizes(signed)
        for name in sizes:
            self._file(name).touch()
        if any(self._file(name).stat().st_size < size for name, size in sizes.items()):
            signed = _Signed()  # the machine went down before the files were on disk
        for name, size in self._sizes(signed).items():
            os.truncate(self._file(name), size)
        self.shards, self._ids_size = signed.shards, signed.ids_size

    def _sizes(self, signed: _Signed) -> dict[str, int]:
        rows = sum(signed.shards.values())
        return {**{name: width * rows for name, width in self._widths.items()}, "ids": signed.ids_size}

    def _matrix(self, name: str, kind: type[np.unsignedinteger]) -> NDArray[np.unsignedinteger]:
        columns = self._widths[name] // np.dtype(kind).itemsize
        if not len(self):
            return np.empty((0, columns), dtype=kind)
        return np.memmap(self._file(name), dtype=kind, mode="r", shape=(len(self), columns))

    def keys(self) -> NDArray[np.uint64]:
        """Documents x (1 + bands)."""
        return self._matrix("keys", np.uint64)

    def signatures(self) -> NDArray[np.uint32]:
        """Documents x permutations."""
        return self._matrix("signatures", np.uint32)

    def first(self, shard: InputShard) -> int:
        """The number of the shard's first document."""
        before = list(self.shards).index(shard.name)
        return sum(list(self.shards.values())[:before])

    def names(self, numbers: NDArray[np.int64]) -> pa.Array:
        """The ids of some documents, given in order of their numbers."""
        wanted = np.zeros(len(self), dtype=np.bool_)
        wanted[numbers] = True
        with self._file("ids").open("rb") as file:
            return pa.array((json.loads(line) for line, use in zip(file, wanted, strict=False) if use), pa.string())


def _lines(ids: Sequence[str]) -> bytes:
    return "".join(json.dumps(name) + "\n" for name in ids).encode()


def _exact_key(text: str) -> int:
    same = " ".join(unicodedata.normalize("NFC", text).split())
    return int.from_bytes(hashlib.blake2b(same.encode(), digest_size=8).digest(), "little")


def _find_duplicates(prints: _Fingerprints, threshold: float) -> _Duplicates:
    keys, signed, count = prints.keys(), prints.signatures(), len(prints)
    shared = shared_buckets(np.ascontiguousarray(keys[:, column]) for column in range(keys.shape[1]))
    found = _Duplicates(
        kept_as=np.full(count, -1, dtype=np.int64),
        similarity=np.zeros(count, dtype=np.float32),
        exact=np.zeros(count, dtype=np.bool_),
        duplicates=np.zeros(count, dtype=np.int64),
        cluster=first_of_cluster(shared, count),
    )
    for document, candidates in _kept_candidates(shared, found.kept_as):
        similarity = (signed[candidates] == signed[document]).mean(axis=1)
        exact = (keys[candidates, 0] == keys[document, 0]) & (similarity == 1)  # a collision of hashes is not equal
        best = int(np.argmax(similarity + exact))  # of those as good, the first
        if similarity[best] >= threshold:
            found.kept_as[document] = candidates[best]
            found.similarity[document] = similarity[best]
            found.exact[document] = exact[best]
            found.duplicates[candidates[best]] += 1
    return found


def _kept_candidates(shared: Buckets, kept_as: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Each document that shares a bucket, in input order, with the earlier documents of its buckets that are kept.

    Whether a document is kept is looked up in `kept_as` when the next one is asked for.
    """
    first_kept = np.full(shared.total, -1, dtype=np.int64)
    more_kept: dict[int, list[int]] = {}  # few: documents too little alike to be duplicates seldom share a bucket
    starts = np.flatnonzero(np.diff(shared.documents, prepend=-1)).tolist()
    for start, end in pairwise([*starts, len(shared.documents)]):
        document, mine = int(shared.documents[start]), shared.buckets[start:end]
        firsts = first_kept[mine]
        candidates = set(firsts[firsts >= 0].tolist())
        candidates.update(*(more_kept.get(bucket, ()) for bucket in mine.tolist()))
        if candidates:
            yield document, np.array(sorted(candidates), dtype=np.int64)
        if kept_as[document] < 0:
            first_kept[mine[firsts < 0]] = document
            for bucket in mine[firsts >= 0].tolist():
                more_kept.setdefault(bucket, []).append(document)
