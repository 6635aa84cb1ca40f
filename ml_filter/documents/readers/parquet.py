"""Parquet: documents with their columns unchanged, and single columns of any table."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.readers import base
from ml_filter.documents.readers.base import InputShard, problem_with_text, text_id
from ml_filter.documents.rejects import RejectsLog
from ml_filter.documents.tables import other_columns
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


def read_documents(uri: str, source: SourceConfig, rejects: RejectsLog, keep_blank: bool) -> Iterator[pa.Table]:
    """The documents of a file; a row group that cannot be read is one reject.

    Raises:
        InputError: a column that the source configuration names does not exist.
    """
    with ExitStack() as stack:
        try:
            file = stack.enter_context(_opened(uri))
        except InputError as error:
            rejects.add(uri, "file", "unreadable", str(error.__cause__))
            return
        names = file.schema_arrow.names
        for column in filter(None, (source.text_column, source.id_column)):
            if column not in names:
                raise InputError(f"{uri} has no column {column!r}; it has {', '.join(names)}")
        first = 0
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            try:
                for batch in file.iter_batches(batch_size=base.BATCH_ROWS, row_groups=[group]):
                    yield _documents(pa.Table.from_batches([batch]), first, uri, source, rejects, keep_blank)
                    first += batch.num_rows
                    rows -= batch.num_rows
            except (pa.ArrowException, OSError) as error:
                rejects.add(uri, f"rows {first} to {first + rows - 1}", "unreadable", str(error))
            first += rows


def _documents(
    table: pa.Table, first_row: int, uri: str, source: SourceConfig, rejects: RejectsLog, keep_blank: bool
) -> pa.Table:
    texts = table.column(source.text_column)
    if not (pa.types.is_string(texts.type) or pa.types.is_large_string(texts.type) or pa.types.is_null(texts.type)):
        raise InputError(f"{uri}: column {source.text_column!r} holds {texts.type}, not text")
    invalid = _invalid_utf8(texts)
    is_valid = pa.array([i not in invalid for i in range(len(texts))]) if invalid else True
    texts = pc.if_else(is_valid, texts, None).cast(pa.large_string())
    blank = pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(texts)), 0)
    usable = pc.and_(pc.invert(blank), pc.less_equal(pc.binary_length(texts), source.max_text_bytes))
    usable = pc.fill_null(usable, False)
    id_column = source.id_column or "id"
    if keep_blank and id_column in table.column_names:
        kept_blank = pc.and_(pc.fill_null(blank, True), pc.is_valid(table.column(id_column)))
        kept_blank = pc.and_(kept_blank, is_valid)
        texts = pc.if_else(kept_blank, "", texts)
        usable = pc.or_(usable, kept_blank)
    if not pc.all(usable).as_py():
        for offset in pc.indices_nonzero(pc.invert(usable)).to_pylist():
            location = f"row {first_row + offset}"
            if offset in invalid:
                rejects.add(uri, location, "invalid_utf8", invalid[offset])
            elif problem := problem_with_text(texts[offset].as_py(), source):
                rejects.add(uri, location, *problem)
            else:  # Arrow's white space has some characters more than Python's
                rejects.add(uri, location, "empty_text")
        table, texts = table.filter(usable), texts.filter(usable)
    ids = table.column(id_column).cast(pa.string()) if id_column in table.column_names else None
    if ids is None or ids.null_count:
        hashes = pa.chunked_array([pa.array([text_id(text) for text in texts.to_pylist()], pa.string())])
        ids = hashes if ids is None else pc.coalesce(ids, hashes)
    others = other_columns(table.column_names, source.text_column, source.id_column)
    return pa.table(
        [ids, texts.cast(pa.string()), *(table.column(name) for name, _ in others)],
        names=["id", "text", *(new_name for _, new_name in others)],
    )


def _invalid_utf8(texts: pa.ChunkedArray) -> dict[int, str]:
    """Which texts are not UTF-8, and why; Parquet files may hold any bytes."""
    try:
        texts.validate(full=True)
    except pa.ArrowInvalid:
        invalid = {}
        for offset, value in enumerate(texts.cast(pa.large_binary()).to_pylist()):
            try:
                (value or b"").decode()
            except UnicodeDecodeError as error:
                invalid[offset] = f"byte {error.start} of the text: {error.reason}"
        return invalid
    return {}
