"""Combine Arrow tables whose columns or types differ, and avoid clashes of column names."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ml_filter.errors import InputError


def union_schema(a: pa.Schema, b: pa.Schema) -> pa.Schema:
    """The columns of both schemas; a column whose two types cannot be combined becomes text."""
    fields = {field.name: field for field in a}
    for field in b:
        if field.name not in fields:
            fields[field.name] = field.with_nullable(True)
            continue
        pair = [pa.schema([fields[field.name]]), pa.schema([field])]
        try:
            fields[field.name] = pa.unify_schemas(pair, promote_options="permissive").field(0)
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            fields[field.name] = pa.field(field.name, pa.string())
    return pa.schema(list(fields.values()))


def cast_table(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table's columns in the schema's order and types; a missing column is null."""
    columns = []
    for field in schema:
        if field.name not in table.column_names:
            columns.append(pa.nulls(table.num_rows, field.type))
            continue
        column = table.column(field.name)
        if column.type == field.type:
            columns.append(column)
        elif pa.types.is_string(field.type) and not pa.types.is_null(column.type):
            columns.append(text_array(column.to_pylist()))
        else:
            # Integers above 2**53 are rounded where the column also holds fractions.
            columns.append(column.cast(options=pc.CastOptions(target_type=field.type, allow_float_truncate=True)))
    return pa.table(columns, schema=schema)


def list_items(table: pa.Table, name: str) -> list[str]:
    """The names of a column's items if it holds lists, such as `scores[0]`, `scores[1]`; otherwise its own name."""
    if name not in table.column_names or not pa.types.is_list(table[name].type):
        return [name]
    return [f"{name}[{i}]" for i in range(pc.max(pc.list_value_length(table[name])).as_py() or 0)]


def split_item(name: str) -> tuple[str, int | None]:
    """The column and the position in `scores[0]`; None: the name is that of a whole column."""
    match = re.fullmatch(r"(.+)\[(\d+)\]", name)
    return (match[1], int(match[2])) if match else (name, None)


def value_in(row: Mapping[str, Any], name: str) -> Any:
    """The value of a column, or of an item such as `scores[0]`; None: the row does not have it."""
    base, position = split_item(name)
    if name in row or position is None:
        return row.get(name)
    items = row.get(base)
    return items[position] if isinstance(items, list) and position < len(items) else None


def number_column(table: pa.Table, name: str, origin: str) -> pa.ChunkedArray:
    """A column as float64; `scores[0]` is the first item of the lists in column `scores`.

    Raises:
        InputError: the column does not exist or does not hold numbers; begins with the origin of the table.
    """
    base, position = split_item(name)
    if name not in table.column_names and position is not None and base in table.column_names:
        column = pa.chunked_array([pa.array([value_in(row, name) for row in table.select([base]).to_pylist()])])
    elif name in table.column_names:
        column = table[name]
    else:
        raise InputError(f"{origin}: no column {name!r}; there are {', '.join(table.column_names)}")
    try:
        return column.cast(pa.float64())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
        examples = ", ".join(list_items(table, name)[:2])
        advice = f"; name its items: {examples}" if examples != name else ""
        raise InputError(f"{origin}: column {name!r} does not hold numbers ({error}){advice}") from error


def concat_tables(tables: Sequence[pa.Table]) -> pa.Table:
    """One table from several whose columns may differ."""
    schema = reduce(union_schema, (table.schema for table in tables))
    return pa.concat_tables([cast_table(table, schema) for table in tables])


def text_array(values: Iterable[Any]) -> pa.Array:
    """The values as text: strings unchanged, others as JSON."""
    return pa.array([v if v is None or isinstance(v, str) else json_text(v) for v in values], pa.string())


def json_text(value: Any) -> str:
    """A value as one line of JSON."""
    return json.dumps(value, ensure_ascii=False, default=str)


def rename_clashes(names: Sequence[str], reserved: Sequence[str]) -> list[str]:
    """Names that leave the reserved names free: a name that is reserved becomes `input_<name>`."""
    new_names = []
    for name in names:
        new_name = name
        while new_name in reserved or (new_name != name and new_name in names):
            new_name = f"input_{new_name}"
        new_names.append(new_name)
    return new_names


def rename_clashing_columns(table: pa.Table, reserved: Sequence[str]) -> pa.Table:
    """The table with its columns of reserved names renamed to `input_<name>`, so that new ones can be added."""
    return table.rename_columns(rename_clashes(table.column_names, reserved))


def other_columns(names: Iterable[str], text_column: str, id_column: str | None) -> list[tuple[str, str]]:
    """The columns of a document beside its `id` and `text`: the name of each in the source and in the document."""
    others = [n for n in names if n != text_column and (n != "id" or id_column not in (None, "id"))]
    return list(zip(others, rename_clashes(others, ("id", "text")), strict=True))
