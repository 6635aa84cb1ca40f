"""JSON: one object on each line, or objects that span lines, alone or in an array (json_values.py)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import chain
from typing import IO, Any

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.readers.base import Problem, Record, Row, has_lone_surrogates, line_limit
from ml_filter.documents.readers.files import DamagedFile, InputFile, stream_of
from ml_filter.documents.readers.json_values import read_values

_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")


def read_records(file: InputFile, source: SourceConfig, *, is_table: bool = False) -> Iterator[Record]:
    """The objects of a file. An object without a text, but with a list of objects that have one, stands for these.

    Args:
        is_table: rows need no text, and their strings may hold lone surrogates, which Arrow cannot store.
    """
    location = "line 0"
    try:
        stream = file.text_stream()
        for location, value in _values(stream, line_limit(source), is_table):
            if isinstance(value, Problem):
                yield location, value
            elif not isinstance(value, dict):
                yield location, Problem("invalid_json", f"a JSON {type(value).__name__}, not an object")
            elif not is_table and (rows := _inner_rows(value, source.text_column)):
                yield from ((f"{location}, item {number}", row) for number, row in enumerate(rows))
            else:
                yield location, value
    except DamagedFile as error:
        yield f"after {location}", Problem(error.reason, str(error))


def _values(stream: IO[bytes], limit: int, allow_surrogates: bool) -> Iterator[tuple[str, Any]]:
    number, is_first = 0, True
    while line := stream.readline(limit):
        number += 1
        is_long = len(line) >= limit and not line.endswith(b"\n")
        if is_first and line.strip():
            is_first = False
            if line.lstrip().startswith(b"[") or (not is_long and _goes_on(line)):
                yield from read_values(stream_of(chain([line], iter(lambda: stream.read(2**16), b""))), number, limit)
                return
        if is_long:
            size = len(line)
            while (piece := stream.readline(2**20)) and not piece.endswith(b"\n"):
                size += len(piece)
            yield f"line {number}", Problem("text_too_long", f"a line of at least {size:,} bytes")
        elif line.strip():
            yield f"line {number}", _parsed(line, allow_surrogates)


def _goes_on(line: bytes) -> bool:
    """Whether a line begins an object that ends on a later one."""
    return line.lstrip().startswith(b"{") and line.rstrip()[-1:] in b"{[,:" and isinstance(_parsed(line, True), Problem)


def _parsed(line: bytes, allow_surrogates: bool) -> Any:
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        return Problem("invalid_utf8", f"byte {error.start} of the line: {error.reason}")
    try:
        value = json.loads(text.strip().removeprefix("\ufeff").removesuffix(","))
    except (ValueError, RecursionError) as error:  # ValueError: also a number of thousands of digits
        return Problem("invalid_json", f"not JSON: {error}")
    if not allow_surrogates and _SURROGATE_ESCAPE.search(text) and has_lone_surrogates(value):
        return Problem("invalid_utf8", "lone surrogates")
    return value


def _inner_rows(row: Row, text_column: str) -> list[Row]:
    """The rows in `{"data": [{"text": ...}, ...]}`; none: the object is a row itself."""
    if text_column in row:
        return []
    lists = [value for value in row.values() if isinstance(value, list) and value]
    if len(lists) != 1 or not all(isinstance(item, dict) for item in lists[0]) or text_column not in lists[0][0]:
        return []
    return lists[0]
