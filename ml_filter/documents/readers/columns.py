"""Documents from Arrow tables, as Parquet and Arrow files hold them: checked row by row, with storable columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.readers.base import Problem, id_text, problem_with_text, text_id
from ml_filter.documents.tables import other_columns, text_array
from ml_filter.errors import InputError

_MAX_LISTED = 1000
Reject = Callable[[str, Problem], None]
"""Called with the location and the problem of each row that is not a document."""


def check_columns(names: list[str], source: SourceConfig, uri: str) -> None:
    """Check that a table has the columns that the source configuration names.

    Raises:
        InputError: a column is missing, or two have the same name.
    """
    for column in filter(None, (source.text_column, source.id_column)):
        if column not in names:
            listed = " ".join(", ".join(names).split())  # a wrong header may have several lines
            raise InputError(f"{uri} has no column {column!r}; it has {listed[:_MAX_LISTED]}")
    check_unique(names, uri)


def check_unique(names: list[str], uri: str) -> None:
    """Check that no two columns have the same name.

    Raises:
        InputError: two have.
    """
    duplicate = next((name for name, count in Counter(names).items() if count > 1), None)
    if duplicate is not None:
        raise InputError(f"{uri} has several columns named {duplicate!r}; rename them")


def documents_of(
    table: pa.Table, first_row: int, uri: str, source: SourceConfig, reject: Reject, keep_blank: bool
) -> pa.Table:
    """The documents of a table whose first row has this number.

    Raises:
        InputError: the text column does not hold text.
    """
    texts = _texts(table.column(source.text_column), source.text_column, uri)
    others = other_columns(table.column_names, source.text_column, source.id_column)
    invalid = _invalid_utf8(texts)
    for name, _ in others:
        if pa.types.is_string(table[name].type) or pa.types.is_large_string(table[name].type):
            invalid = {
                **{row: f"column {name!r}, {what}" for row, what in _invalid_utf8(table[name]).items()},
                **invalid,
            }
    is_valid = pa.array([i not in invalid for i in range(len(texts))], pa.bool_()) if invalid else True
    texts = pc.if_else(is_valid, texts, pa.scalar(None, texts.type))
    blank = pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(texts)), 0)
    usable = pc.and_(pc.invert(blank), pc.less_equal(pc.binary_length(texts), source.max_text_bytes))
    usable = pc.fill_null(usable, False)
    id_column = source.id_column or "id"
    ids = _ids(table.column(id_column)) if id_column in table.column_names else None
    if keep_blank and ids is not None:
        kept_blank = pc.and_(pc.fill_null(blank, True), pc.is_valid(ids))
        kept_blank = pc.and_(kept_blank, is_valid)
        texts = pc.if_else(kept_blank, "", texts)
        usable = pc.or_(usable, kept_blank)
    if not pc.all(usable).as_py():
        for offset in pc.indices_nonzero(pc.invert(usable)).to_pylist():
            problem = problem_with_text(texts[offset].as_py(), source)
            if offset in invalid:
                problem = Problem("invalid_utf8", invalid[offset])
            # Arrow's white space has some characters more than Python's.
            reject(f"row {first_row + offset}", problem or Problem("empty_text"))
        ids = None if ids is None else ids.filter(usable)
    columns = [storable(table.column(name)) for name, _ in others]
    if not pc.all(usable).as_py():
        columns, texts = [column.filter(usable) for column in columns], texts.filter(usable)
    if ids is None or ids.null_count:
        hashes = pa.chunked_array([pa.array([text_id(text) for text in texts.to_pylist()], pa.string())])
        ids = hashes if ids is None else pc.coalesce(ids, hashes)
    return pa.table([ids, texts.cast(pa.string()), *columns], names=["id", "text", *(name for _, name in others)])


def storable(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The column in a type that Parquet can store and Arrow can filter; without such a type, as JSON text."""
    if _is_supported(column.type):
        return column
    if pa.types.is_run_end_encoded(column.type):
        return storable(pc.run_end_decode(column))
    plain = _without_views(column.type)
    if _is_supported(plain):
        try:
            return column.cast(plain)
        except pa.ArrowNotImplementedError:
            pass
    return pa.chunked_array([text_array(column.to_pylist())])


@cache
def _is_supported(kind: pa.DataType) -> bool:
    try:
        table = pa.table({"c": pa.nulls(1, kind)})
        pq.write_table(table.filter(pa.array([True])), pa.BufferOutputStream())
    except (pa.ArrowException, ValueError):
        return False
    return True


def _without_views(kind: pa.DataType) -> pa.DataType:
    if kind == pa.string_view():
        return pa.string()
    if kind == pa.binary_view():
        return pa.binary()
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_without_views(field.type)) for field in kind.fields])
    if pa.types.is_map(kind):
        return pa.map_(_without_views(kind.key_type), _without_views(kind.item_type))
    if pa.types.is_list(kind) or pa.types.is_list_view(kind):
        return pa.list_(_without_views(kind.value_type))
    if pa.types.is_large_list(kind) or pa.types.is_large_list_view(kind):
        return pa.large_list(_without_views(kind.value_type))
    if pa.types.is_dictionary(kind):
        return _without_views(kind.value_type)
    return kind


def _texts(column: pa.ChunkedArray, name: str, uri: str) -> pa.ChunkedArray:
    """The column as text, which may be invalid UTF-8."""
    column = _plain(column)
    kind = column.type
    if not any(check(kind) for check in (pa.types.is_null, *_BYTES)):
        raise InputError(f"{uri}: column {name!r} holds {kind}, not text")
    return column.cast(options=pc.CastOptions(pa.large_string(), allow_invalid_utf8=True))


_BYTES: tuple[Callable[[pa.DataType], Any], ...] = (
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_string_view,
    pa.types.is_binary,
    pa.types.is_large_binary,
    pa.types.is_binary_view,
)


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The values of an extension type, a dictionary or runs."""
    if isinstance(column.type, pa.BaseExtensionType) and column.type != pa.uuid():
        column = pa.chunked_array([chunk.storage for chunk in column.chunks], column.type.storage_type)
    if pa.types.is_run_end_encoded(column.type):
        column = pc.run_end_decode(column)
    if pa.types.is_dictionary(column.type):
        values = column.type.value_type
        kind = _without_views(values)
        chunks = [pa.DictionaryArray.from_arrays(c.indices, c.dictionary.cast(kind)) for c in column.chunks]
        column = pa.chunked_array([chunk.dictionary_decode() for chunk in chunks], kind)
    return column


def _ids(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The ids as text; those that are empty or not a number are null. Bytes that are not readable become hex digits."""
    column = _plain(column)
    kind = column.type
    if any(check(kind) for check in _BYTES):
        texts = column.cast(options=pc.CastOptions(pa.large_string(), allow_invalid_utf8=True))
        is_text = any(check(kind) for check in _BYTES[:3])
        if not _invalid_utf8(texts) and (is_text or pc.all(pc.utf8_is_printable(texts)).as_py() is not False):
            return pc.if_else(pc.equal(texts, ""), None, texts).cast(pa.string())
        values = texts.cast(pa.large_binary()).to_pylist()
    elif pa.types.is_integer(kind) or pa.types.is_decimal(kind):
        return column.cast(pa.string())
    elif pa.types.is_floating(kind):
        return pc.if_else(pc.is_nan(column), None, column).cast(pa.string())
    elif pa.types.is_fixed_size_binary(kind):
        values = [None if value is None else value.hex() for value in column.to_pylist()]
    else:
        values = column.to_pylist()
    return pa.chunked_array([pa.array([id_text(value) for value in values], pa.string())])


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
                invalid[offset] = f"byte {error.start}: {error.reason}"
        return invalid
    return {}
