"""Read files and compare the documents and rejects with what is expected."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import zstandard

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.readers import InputShard, read_shard
from ml_filter.documents.rejects import RejectsLog
from ml_filter.documents.sources import list_shards
from ml_filter.documents.tables import concat_tables


class Read(NamedTuple):
    rows: list[dict]
    rejects: list[dict]
    table: pa.Table | None

    @property
    def texts(self) -> list[str]:
        return [row["text"] for row in self.rows]

    @property
    def reasons(self) -> list[str]:
        return [reject["reason"] for reject in self.rejects]

    @property
    def locations(self) -> list[tuple[str, str]]:
        """Location and reason of each reject."""
        return [(reject["place"], reject["reason"]) for reject in self.rejects]


def read_all(log: Path, *paths: object, shards: list[InputShard] | None = None, **options: Any) -> Read:
    """Read all shards of the paths; rejects are written to `log`."""
    source = SourceConfig(paths=[str(path) for path in paths] or ["installed:"], **options)
    with RejectsLog(log) as rejects:
        tables = [t for shard in shards or list_shards(source)[0] for t in read_shard(shard, source, rejects)]
    table = concat_tables(tables) if tables else None
    rejected = [json.loads(line) for line in log.read_bytes().splitlines()]
    return Read([] if table is None else table.to_pylist(), rejected, table)


def lines(*rows: dict) -> bytes:
    """Rows as JSON lines."""
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def varied_rows(count: int) -> list[dict]:
    """Rows that hardly compress, so that a truncated archive still has complete lines before the cut."""
    return [{"id": str(i), "text": hashlib.sha512(str(i).encode()).hexdigest()} for i in range(count)]


def compress(content: bytes, ending: str) -> bytes:
    """The content as a file of this ending has it."""
    return {"": lambda c: c, ".gz": gzip.compress, ".zst": zstandard.compress}[ending](content)
