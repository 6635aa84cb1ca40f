"""Read a table that need not hold documents: labels, ratings, gold."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import fsspec

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.readers import csv, jsonl
from ml_filter.documents.readers.base import InputShard, Problem, Record, Row
from ml_filter.documents.readers.parquet import read_tables
from ml_filter.documents.rejects import DAMAGE
from ml_filter.errors import InputError

_LIMITS = SourceConfig(max_text_bytes=2**26)


def read_rows(shard: InputShard, columns: Collection[str] | None = None) -> Iterator[tuple[str, Row]]:
    """Each row of a Parquet, JSONL or CSV file with its location, such as `gold.csv, line 3`, for error messages.

    Unlike `read_shard`, it needs no text column, and an unreadable row is an error: figures must not depend on which
    rows happened to be readable.

    Args:
        columns: the columns to read from Parquet (None: all); rows of other formats have all their columns.

    Raises:
        InputError: a row cannot be read, or the shard has another format.
    """
    if shard.format == "parquet":
        rows = (row for table in read_tables(shard.uri, columns) for row in table.to_pylist())
        yield from ((f"{shard.uri}, row {number}", row) for number, row in enumerate(rows))
        return
    if shard.format not in ("jsonl", "csv"):
        raise InputError(f"{shard.uri}: tables are read from Parquet, JSON lines and CSV, not from {shard.format}")
    try:
        for location, record in _records(shard):
            if isinstance(record, Problem):
                if record.reason in DAMAGE:
                    raise InputError(f"{shard.uri} cannot be read: {location}: {record.detail}")
                raise InputError(f"{shard.uri}, {location}: {record.detail}")
            yield f"{shard.uri}, {location}", record
    except OSError as error:
        raise InputError(f"{shard.uri} cannot be read: {type(error).__name__}: {error}") from error


def _records(shard: InputShard) -> Iterator[Record]:
    with fsspec.open(shard.uri, "rb") as raw:
        if shard.format == "csv":
            yield from csv.read_records(raw, shard.uri, _LIMITS)
        else:
            yield from jsonl.read_records(raw, shard.uri, _LIMITS, allow_surrogates=True)
