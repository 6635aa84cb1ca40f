"""Drop documents that repeat an earlier one: exactly, or nearly according to MinHash.

A document is dropped if an earlier document that is kept has the same text (Unicode NFC, all white space treated the
same), or shares a band of its MinHash signature and has, by the full signatures, an estimated Jaccard similarity of
word 5-grams of at least the threshold. So each dropped document is close to the one that is kept for it, and
deduplicating again drops nothing.

The corpus is read twice: to compute signatures, and to write the kept documents. Signatures are in files beside the
unfinished output (648 bytes a document by default). Memory holds about 60 bytes a document, and 40 for each band it
shares with others (350 bytes a document in all, measured on 400,000 documents of which 30% were duplicates).
"""

from __future__ import annotations

import hashlib
import json
import os
import unicodedata
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Literal, NamedTuple

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
from ml_filter.errors import InputError
from ml_filter.location import write_atomically
from ml_filter.prepare.config import DeduplicateConfig
from ml_filter.prepare.minhash import Buckets, band_keys, first_of_cluster, rows_per_band, shared_buckets, signatures
from ml_filter.progress import progress

CLUSTER_COLUMN = "duplicate_cluster"
"""The id of the first of the documents that share a band of their signatures, directly or through others."""
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
    """Write a corpus without its duplicates; the first of each set of duplicates in input order is kept.

    Every input column, plus `duplicates` (how many documents were dropped for this one) and `duplicate_cluster` (the
    same for documents that share a band of their signatures). `dropped/` lists the dropped documents.

    Raises:
        InputError: no document could be read, or the source changed during the run.
    """
    shards, parents = list_shards(source)
    settings = {"source": source.model_dump(mode="json"), "deduplicate": config.model_dump(mode="json")}
    with OutputDirectory(output, "documents", settings, parents) as out:
        if out.manifest:
            return out.manifest
        fingerprints = _Fingerprints(out.scratch, config)
        fingerprints.add(shards, source)
        duplicates = _find_duplicates(fingerprints, config.threshold)
        referenced = duplicates.referenced()
        referenced_ids = fingerprints.ids(referenced)

        def ids_of(numbers: NDArray[np.int64]) -> pa.Array:
            return referenced_ids.take(pa.array(np.searchsorted(referenced, numbers)))

        def divide(shard: InputShard, offset: int, table: pa.Table) -> KeptAndDropped:
            first = fingerprints.first(shard) + offset
            if offset + table.num_rows > fingerprints.shards[shard.name]:
                raise InputError(f"{shard.uri} changed during the run; delete {out.path} and start over")
            numbers = np.arange(first, first + table.num_rows)
            keep = duplicates.kept_as[numbers] < 0
            kept, dropped_ids = split_table(table, keep)
            cluster = duplicates.cluster[numbers[keep]]
            is_linked = cluster != numbers[keep]
            clusters = pc.replace_with_mask(
                kept["id"].combine_chunks(), pa.array(is_linked), ids_of(cluster[is_linked])
            )
            kept = rename_clashing_columns(kept, (DUPLICATES_COLUMN, CLUSTER_COLUMN))
            kept = kept.append_column(DUPLICATES_COLUMN, pa.array(duplicates.dropped_for[numbers[keep]], pa.int64()))
            kept = kept.append_column(CLUSTER_COLUMN, clusters)
            dropped = numbers[~keep]
            columns = [
                dropped_ids,
                ids_of(duplicates.kept_as[dropped]),
                np.where(duplicates.is_exact[dropped], "exact", "near").tolist(),
                duplicates.similarity[dropped],
            ]
            return KeptAndDropped(kept, pa.table(columns, schema=DROPPED_SCHEMA))

        return drop_documents(out, shards, source, divide, DROPPED_SCHEMA, "Writing kept documents")


class _Duplicates(NamedTuple):
    """An entry per document, which is known by its number in input order."""

    kept_as: NDArray[np.int64]
    """The document that is kept for it; -1: itself."""
    similarity: NDArray[np.float32]
    is_exact: NDArray[np.bool_]
    dropped_for: NDArray[np.int64]
    """How many documents were dropped for it."""
    cluster: NDArray[np.int64]
    """The first document of its cluster."""

    def referenced(self) -> NDArray[np.int64]:
        """The documents whose ids are needed in rows of other documents."""
        linked = self.cluster[self.cluster != np.arange(len(self.cluster))]
        return np.unique(np.concatenate([self.kept_as[self.kept_as >= 0], linked]))


class _State(BaseModel):
    """What the files of fingerprints contain: documents of each finished shard, and bytes of ids."""

    shards: dict[str, int] = {}
    ids_size: int = 0


class _Fingerprints:
    """Keys, signatures and ids of all documents, in files that grow shard by shard, so that a killed run can resume.

    The keys of a document are the hash of its exact text and the hashes of its bands.
    """

    def __init__(self, directory: Path, config: DeduplicateConfig) -> None:
        self.config = config
        self.rows_per_band = rows_per_band(config.threshold, config.permutations)
        bands = config.permutations // self.rows_per_band
        self._widths = {"keys": 8 * (1 + bands), "signatures": 4 * config.permutations}
        self._directory = directory
        self._state = _State()

    def __len__(self) -> int:
        return sum(self.shards.values())

    @property
    def shards(self) -> dict[str, int]:
        """The number of documents of each finished shard, in order."""
        return self._state.shards

    def add(self, shards: Sequence[InputShard], source: SourceConfig) -> None:
        """Compute the fingerprints of the shards that are not finished yet."""
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
                rows, ids_size = 0, self._state.ids_size
                for table in read_shard(shard, source, RejectsLog()):
                    texts = table["text"].to_pylist()
                    signature = signatures(texts, self.config.permutations, self.config.seed)
                    exact = np.array([_exact_key(text) for text in texts], dtype=np.uint64)
                    keys.write(np.column_stack([exact, band_keys(signature, self.rows_per_band)]).tobytes())
                    signed.write(signature.tobytes())
                    ids_size += ids.write("".join(json.dumps(i) + "\n" for i in table["id"].to_pylist()).encode())
                    rows += table.num_rows
                    bar.advance(table.num_rows)
                for file in (keys, signed, ids):
                    file.flush()
                # The commit point of a shard: what the files contain beyond this state is cut off on resuming.
                self._state = _State(shards={**self.shards, shard.name: rows}, ids_size=ids_size)
                write_atomically(self._directory / "signed.json", self._state.model_dump_json().encode())

    def _file(self, name: str) -> Path:
        return self._directory / f"{name}.bin"

    def _resume(self) -> None:
        """Load the state, and cut off what was written of an unfinished shard."""
        path = self._directory / "signed.json"
        self._state = _State.model_validate_json(path.read_text()) if path.exists() else _State()
        for name in self._sizes():
            self._file(name).touch()
        if any(self._file(name).stat().st_size < size for name, size in self._sizes().items()):
            self._state = _State()  # the machine stopped before the files were on disk
        for name, size in self._sizes().items():
            os.truncate(self._file(name), size)

    def _sizes(self) -> dict[str, int]:
        return {**{name: width * len(self) for name, width in self._widths.items()}, "ids": self._state.ids_size}

    def matrix(self, name: Literal["keys", "signatures"]) -> NDArray[np.unsignedinteger]:
        """The 64-bit keys [documents, 1 + bands], or the 32-bit signatures [documents, permutations]."""
        dtype = np.dtype(np.uint64 if name == "keys" else np.uint32)
        shape = (len(self), self._widths[name] // dtype.itemsize)
        # an empty file cannot be mapped
        return np.memmap(self._file(name), dtype, "r", shape=shape) if len(self) else np.empty(shape, dtype)

    def first(self, shard: InputShard) -> int:
        """The number of the shard's first document."""
        before = list(self.shards).index(shard.name)
        return sum(list(self.shards.values())[:before])

    def ids(self, numbers: NDArray[np.int64]) -> pa.Array:
        """The ids of documents whose numbers are given in ascending order."""
        wanted = np.zeros(len(self), dtype=np.bool_)
        wanted[numbers] = True
        with self._file("ids").open("rb") as file:
            return pa.array((json.loads(line) for line, use in zip(file, wanted, strict=False) if use), pa.string())


def _exact_key(text: str) -> int:
    normalised = " ".join(unicodedata.normalize("NFC", text).split())
    return int.from_bytes(hashlib.blake2b(normalised.encode(), digest_size=8).digest(), "little")


def _find_duplicates(fingerprints: _Fingerprints, threshold: float) -> _Duplicates:
    keys, signed, count = fingerprints.matrix("keys"), fingerprints.matrix("signatures"), len(fingerprints)
    shared = shared_buckets(np.ascontiguousarray(keys[:, column]) for column in range(keys.shape[1]))
    duplicates = _Duplicates(
        kept_as=np.full(count, -1, dtype=np.int64),
        similarity=np.zeros(count, dtype=np.float32),
        is_exact=np.zeros(count, dtype=np.bool_),
        dropped_for=np.zeros(count, dtype=np.int64),
        cluster=first_of_cluster(shared, count),
    )
    for document, candidates in _kept_candidates(shared, duplicates.kept_as):
        similarity = (signed[candidates] == signed[document]).mean(axis=1)
        # Texts with the same hash may differ (a collision); the same signature as well rules that out.
        is_exact = (keys[candidates, 0] == keys[document, 0]) & (similarity == 1)
        best = int(np.argmax(similarity + is_exact))  # the first of the best
        if similarity[best] >= threshold:
            duplicates.kept_as[document] = candidates[best]
            duplicates.similarity[document] = similarity[best]
            duplicates.is_exact[document] = is_exact[best]
            duplicates.dropped_for[candidates[best]] += 1
    return duplicates


def _kept_candidates(shared: Buckets, kept_as: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Each document that shares a bucket, in input order, with the earlier documents of its buckets that are kept.

    The caller decides whether a document is kept, in `kept_as`, before it asks for the next one.
    """
    # Most buckets have one kept document, in an array; the few others (documents that share a band but are not similar
    # enough to be duplicates) have the rest of theirs in a dict, which would be too large for all.
    first_kept = np.full(shared.total, -1, dtype=np.int64)
    more_kept: dict[int, list[int]] = {}
    starts = np.flatnonzero(np.diff(shared.documents, prepend=-1)).tolist()
    for start, end in pairwise([*starts, len(shared.documents)]):
        document, buckets = int(shared.documents[start]), shared.buckets[start:end]
        firsts = first_kept[buckets]
        candidates = set(firsts[firsts >= 0].tolist())
        candidates.update(*(more_kept.get(bucket, ()) for bucket in buckets.tolist()))
        if candidates:
            yield document, np.array(sorted(candidates), dtype=np.int64)
        if kept_as[document] < 0:
            first_kept[buckets[firsts < 0]] = document
            for bucket in buckets[firsts >= 0].tolist():
                more_kept.setdefault(bucket, []).append(document)
