"""Read an input shard of any format as Arrow tables of documents, and list unreadable pieces as rejects.

Every table has `id` and `text` first, `url`, `language` and `source` if the format knows them, and all other columns
unchanged. If another column was chosen as `text` or `id`, a column of that name becomes `input_text` or `input_id`. A
reader never stops at bad input: it rejects the piece and continues where it can.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import cast

import fsspec
import pyarrow as pa

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.readers import base, csv, hub, installed, jsonl, parquet, warc
from ml_filter.documents.readers.base import InputShard, Problem, Record, Row, is_blank, problem_with_text, text_id
from ml_filter.documents.rejects import RejectsLog
from ml_filter.documents.tables import other_columns, text_array
from ml_filter.errors import InputError

_FILE_READERS = {"jsonl": jsonl.read_records, "csv": csv.read_records, "warc": warc.read_records}


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
    if shard.format == "parquet":
        yield from parquet.read_documents(shard.uri, source, rejects, keep_blank)
        return
    batch: list[Row] = []
    size = 0
    for location, row in read_records(shard, source, rejects):
        document = _document(row, source, keep_blank)
        if isinstance(document, Problem):
            rejects.add(shard.uri, location, *document)
            continue
        batch.append(document)
        size += len(document["text"])
        if len(batch) >= base.BATCH_ROWS or size >= base.BATCH_BYTES:
            yield _table(batch)
            batch, size = [], 0
    if batch:
        yield _table(batch)


def read_records(shard: InputShard, source: SourceConfig, rejects: RejectsLog) -> Iterator[tuple[str, Row]]:
    """Each readable row of a shard with its location; the others are rejected.

    Raises:
        InputError: a Parquet file is damaged, or a CSV file has no column of a name in the source configuration.
    """
    for location, record in _records_of(shard, source):
        if isinstance(record, Problem):
            rejects.add(shard.uri, location, *record)
            continue
        if shard.format == "csv":
            for column in filter(None, (source.text_column, source.id_column)):
                if column not in record:
                    raise InputError(f"{shard.uri} has no column {column!r}; it has {', '.join(record)}")
        yield location, record


def _records_of(shard: InputShard, source: SourceConfig) -> Iterator[Record]:
    if shard.format == "installed":
        yield from ((row["id"], row) for row in installed.read_installed())
    elif shard.format == "hub":
        yield from hub.read_records(shard, source)
    elif shard.format == "parquet":
        rows = (row for table in parquet.read_tables(shard.uri) for row in table.to_pylist())
        yield from ((f"row {number}", row) for number, row in enumerate(rows))
    else:
        try:
            raw = fsspec.open(shard.uri, "rb").open()
        except OSError as error:
            yield "file", Problem("unreadable", f"{type(error).__name__}: {error}")
            return
        with raw:
            yield from _FILE_READERS[shard.format](raw, shard.uri, source)


def _document(row: Row, source: SourceConfig, keep_blank: bool) -> Row | Problem:
    text = row.get(source.text_column)
    document_id = row.get(source.id_column or "id")
    others = {new_name: row[name] for name, new_name in other_columns(row, source.text_column, source.id_column)}
    if keep_blank and document_id is not None and is_blank(text) and source.text_column in row:
        return {"id": str(document_id), "text": "", **others}
    if problem := problem_with_text(text, source):
        return problem
    return {"id": text_id(cast("str", text)) if document_id is None else str(document_id), "text": text, **others}


def _table(rows: list[Row]) -> pa.Table:
    names: Iterable[str] = dict.fromkeys(name for row in rows for name in row)
    columns = {}
    for name in names:
        values = [row.get(name) for row in rows]
        try:
            column = pa.array(values)
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):  # mixed types in one column of JSON
            column = None
        if column is None or not _is_storable(column.type):
            column = text_array(values)
        columns[name] = column
    return pa.table(columns)


def _is_storable(kind: pa.DataType) -> bool:
    """Whether Parquet can store the type: it has no struct without fields, which is the type of `{}`."""
    children = [kind.field(i).type for i in range(kind.num_fields)]
    return (bool(children) or not pa.types.is_struct(kind)) and all(map(_is_storable, children))
