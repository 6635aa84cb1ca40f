"""Parquet: rows of any file with what is wrong with it, and columns of a file that must be whole."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from ml_filter.documents.readers import base
from ml_filter.documents.readers.base import InputShard, Part, Problem, Rows
from ml_filter.documents.readers.columns import check_unique
from ml_filter.documents.readers.files import InputFile
from ml_filter.errors import InputError

_ROWS_WITHOUT_TEXT = 20_000
_COUNTED_SHARDS = 1000
"""A progress bar is not worth opening more files than this to count their rows."""


def read_tables(
    uri: str, columns: Collection[str] | None = None, expected_rows: int | None = None
) -> Iterator[pa.Table]:
    """Columns of a Parquet file at a path or URL, in tables of at most 20,000 rows (1,000 with a column `text`).

    Args:
        columns: None: all; columns that the file does not have are left out.
        expected_rows: number of rows that the manifest states.

    Raises:
        InputError: the file is missing or damaged, or has another number of rows.
    """
    with _opened(uri) as file:
        if expected_rows not in (None, file.metadata.num_rows):
            raise InputError(f"{uri} has {file.metadata.num_rows:,} rows; its manifest states {expected_rows:,}")
        names = [name for name in file.schema_arrow.names if columns is None or name in columns]
        rows = base.BATCH_ROWS if "text" in names else _ROWS_WITHOUT_TEXT
        # One row group at a time: pre_buffer keeps all row groups of a call in memory.
        for group in range(file.num_row_groups):
            for batch in file.iter_batches(batch_size=rows, row_groups=[group], columns=names):
                yield pa.Table.from_batches([batch])


def read_schema(uri: str) -> pa.Schema:
    """The columns of a Parquet file at a path or URL.

    Raises:
        InputError: the file is missing or damaged.
    """
    with _opened(uri) as file:
        return file.schema_arrow


@contextmanager
def _opened(uri: str) -> Iterator[pq.ParquetFile]:
    try:
        with fsspec.open(uri, "rb") as raw:
            yield pq.ParquetFile(raw, pre_buffer=True)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{uri} cannot be read ({type(error).__name__}: {' '.join(str(error).split())})") from error


def known_rows(shards: Sequence[InputShard]) -> int | None:
    """How many rows the shards have, for progress bars; None: it is not known without reading them."""
    unknown = [shard for shard in shards if shard.rows is None]
    if len(unknown) > _COUNTED_SHARDS or any(shard.format != "parquet" for shard in unknown):
        return None
    rows = sum(shard.rows or 0 for shard in shards)
    for shard in unknown:
        try:
            with _opened(shard.uri) as file:
                rows += file.metadata.num_rows
        except InputError:  # reading it will report what is wrong with it
            return None
    return rows


def read_parts(file: InputFile) -> Iterator[Part]:
    """The rows of a file in tables of at most 1,000; a row group that cannot be read is one problem."""
    with file.seekable() as raw:
        parquet = pq.ParquetFile(raw, pre_buffer=True)
        check_unique(parquet.schema_arrow.names, file.uri)
        first = 0
        for group in range(parquet.num_row_groups):
            rows = parquet.metadata.row_group(group).num_rows
            try:
                for batch in parquet.iter_batches(batch_size=base.BATCH_ROWS, row_groups=[group]):
                    yield f"row {first}", Rows(pa.Table.from_batches([batch]), first)
                    first += batch.num_rows
                    rows -= batch.num_rows
                if rows:
                    raise pa.ArrowInvalid(f"the row group states {rows:,} rows more or less than it has")
            except (pa.ArrowException, OSError) as error:
                yield f"rows {first} to {first + rows - 1}", Problem("unreadable", str(error))
            first += max(rows, 0)
        if first != parquet.metadata.num_rows:
            yield f"after row {first - 1}", Problem("unreadable", f"the file states {parquet.metadata.num_rows:,} rows")
