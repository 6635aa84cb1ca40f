"""Read an input shard of any format as Arrow tables of documents, and list unreadable pieces as rejects.

Every table has `id` and `text` first, `url`, `language` and `source` if the format knows them, and all other columns
unchanged. If another column was chosen as `text` or `id`, a column of that name becomes `input_text` or `input_id`. A
reader never stops at bad input: it rejects the piece and continues where it can.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import cast

import pyarrow as pa

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.readers import arrow, base, csv, hub, installed, jsonl, mongodb, parquet, pdf, warc
from ml_filter.documents.readers.base import (
    InputShard,
    Part,
    Problem,
    Row,
    Rows,
    id_text,
    is_blank,
    problem_with_text,
    text_id,
)
from ml_filter.documents.readers.columns import check_columns, documents_of, storable
from ml_filter.documents.readers.files import DamagedFile, InputFile, opened
from ml_filter.documents.rejects import RejectsLog
from ml_filter.documents.tables import other_columns, rename_clashes, text_array
from ml_filter.errors import MlFilterError

_ROW_READERS = {"jsonl": jsonl.read_records, "csv": csv.read_records}
_TABLE_READERS = {"parquet": parquet.read_parts, "arrow": arrow.read_parts}


def read_shard(
    shard: InputShard, source: SourceConfig, rejects: RejectsLog, *, keep_blank: bool = False
) -> Iterator[pa.Table]:
    """Stream one shard as tables of documents.

    Args:
        keep_blank: return documents that have an id and a null or blank text, with the text "", instead of rejecting
            them.

    Raises:
        InputError: a column that the source configuration names does not exist.
    """
    batch: list[Row] = []
    size = 0
    for location, part in _parts(shard, source):
        if isinstance(part, Problem):
            rejects.add(shard.uri, location, *part)
        elif isinstance(part, Rows):
            yield from _checked(part, shard, source, rejects, keep_blank)
        else:
            document = _document(part, source, keep_blank)
            if isinstance(document, Problem):
                rejects.add(shard.uri, location, *document)
                continue
            batch.append(document)
            size += len(document["text"])
            if len(batch) >= base.BATCH_ROWS or size >= base.BATCH_BYTES:
                yield _with_partitions(_table(batch), shard)
                batch, size = [], 0
    if batch:
        yield _with_partitions(_table(batch), shard)


def read_records(shard: InputShard, source: SourceConfig, rejects: RejectsLog) -> Iterator[tuple[str, Row]]:
    """Each readable row of a shard with its location; the others are rejected.

    Raises:
        InputError: a CSV file has no column of a name in the source configuration.
    """
    for location, part in _parts(shard, source):
        if isinstance(part, Problem):
            rejects.add(shard.uri, location, *part)
        elif isinstance(part, Rows):
            yield from part.records()
        else:
            yield location, part


def _parts(shard: InputShard, source: SourceConfig) -> Iterator[Part]:
    if shard.format == "installed":
        yield from ((row["id"], row) for row in installed.read_installed())
        return
    if shard.format == "hub":
        yield from hub.read_records(shard, source)
        return
    if shard.format == "mongodb":
        yield from mongodb.read_records(shard)
        return
    try:
        with opened(shard.uri) as file:
            yield from file_parts(file, shard, source)
    except DamagedFile as error:
        yield "file", Problem(error.reason, str(error))


def file_parts(file: InputFile, shard: InputShard, source: SourceConfig, *, is_table: bool = False) -> Iterator[Part]:
    """Tables or rows of a file, in the format of its content.

    Args:
        is_table: rows need no text, and their strings may hold lone surrogates.

    Raises:
        DamagedFile: the file cannot be read at all.
        InputError: the columns are not as expected.
    """
    file_format = file.format(shard.format)
    if file_format == "warc":
        yield from warc.read_records(file, source)
    elif file_format == "pdf":
        yield from pdf.read_records(file, source)
    elif file_format in _ROW_READERS:
        yield from _ROW_READERS[file_format](file, source, is_table=is_table)
    elif file_format in _TABLE_READERS:
        yield from _table_parts(file, _TABLE_READERS[file_format])


def _table_parts(file: InputFile, read_parts: Callable[[InputFile], Iterator[Part]]) -> Iterator[Part]:
    try:
        yield from read_parts(file)
    except (MlFilterError, DamagedFile):
        raise
    except Exception as error:  # Arrow's errors have no common base class with those of Python that damage leads to
        raise DamagedFile("unreadable", f"{type(error).__name__}: {error}") from error


def _checked(
    rows: Rows, shard: InputShard, source: SourceConfig, rejects: RejectsLog, keep_blank: bool
) -> Iterator[pa.Table]:
    check_columns(rows.table.column_names, source, shard.uri)

    def reject(location: str, problem: Problem) -> None:
        rejects.add(shard.uri, location, *problem)

    documents = documents_of(rows.table, rows.first, shard.uri, source, reject, keep_blank)
    if documents.num_rows:
        yield _with_partitions(documents, shard)


def _with_partitions(table: pa.Table, shard: InputShard) -> pa.Table:
    """The table with the columns of its directories; a column that the file has itself goes before them."""
    names = rename_clashes([name for name, _ in shard.partitions], ("id", "text"))
    for name, (_, value) in zip(names, shard.partitions, strict=True):
        if name not in table.column_names:
            table = table.append_column(name, pa.repeat(pa.scalar(value, pa.string()), table.num_rows))
    return table


def _document(row: Row, source: SourceConfig, keep_blank: bool) -> Row | Problem:
    text = row.get(source.text_column)
    document_id = id_text(row.get(source.id_column or "id"))
    others = {new_name: row[name] for name, new_name in other_columns(row, source.text_column, source.id_column)}
    if keep_blank and document_id is not None and is_blank(text) and source.text_column in row:
        return {"id": document_id, "text": "", **others}
    if problem := problem_with_text(text, source):
        return problem
    return {"id": text_id(cast("str", text)) if document_id is None else document_id, "text": text, **others}


def _table(rows: list[Row]) -> pa.Table:
    names: Iterable[str] = dict.fromkeys(name for row in rows for name in row)
    columns = {}
    for name in names:
        values = [row.get(name) for row in rows]
        try:
            columns[name] = storable(pa.chunked_array([pa.array(values)]))
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):  # mixed types in one column of JSON
            columns[name] = text_array(values)
    return pa.table(columns)
