"""CSV and TSV, plain or compressed.

The first line names the columns. The separator (comma, semicolon or tab) is the one that occurs most in it. Every value
is text, because the file has no types; an empty one is None.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator
from typing import IO

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.readers.base import (
    TRUNCATION_ERRORS,
    Problem,
    Record,
    Row,
    decompressed,
    has_lone_surrogates,
    line_limit,
)
from ml_filter.errors import InputError


def read_records(raw: IO[bytes], uri: str, source: SourceConfig) -> Iterator[Record]:
    """The rows below the first line.

    Raises:
        InputError: the first line does not name the columns.
    """
    csv.field_size_limit(line_limit(source))  # a longer value is probably a quote that is never closed
    stream = io.BufferedReader(decompressed(raw, uri))  # type: ignore[type-var]
    location = "line 0"
    try:
        first = stream.peek(2**13).partition(b"\n")[0].decode(errors="replace")
        with io.TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape", newline="") as text:
            rows = csv.reader(text, delimiter=max(",;\t", key=first.count), strict=True)
            header: list[str] | None = None
            while True:
                location = f"line {rows.line_num + 1}"
                try:
                    cells = next(rows)
                except StopIteration:
                    return
                except csv.Error as error:
                    if header is None:
                        raise InputError(f"{uri}, {location}: {error}; the first line must name the columns") from None
                    yield location, Problem("invalid_csv", str(error))
                    continue
                if header is None:
                    header = _column_names(cells, uri)
                elif cells:
                    yield location, _row(header, cells)
    except TRUNCATION_ERRORS as error:
        yield f"after {location}", Problem("truncated", str(error))


def _column_names(cells: list[str], uri: str) -> list[str]:
    if has_lone_surrogates(cells):
        raise InputError(f"{uri} is not UTF-8; save it as UTF-8")
    if not any(cells):
        raise InputError(f"{uri} begins with an empty line; the first line must name the columns")
    duplicates = [name for name, count in Counter(cells).items() if count > 1]
    if duplicates:
        raise InputError(f"{uri} has a duplicate column {duplicates[0]!r}; rename one of them")
    return cells


def _row(header: list[str], cells: list[str]) -> Row | Problem:
    if has_lone_surrogates(cells):
        return Problem("invalid_utf8", "not UTF-8")
    if len(cells) != len(header):
        return Problem("invalid_csv", f"{len(cells)} values for {len(header)} columns")
    return {name: cell or None for name, cell in zip(header, cells, strict=True)}
