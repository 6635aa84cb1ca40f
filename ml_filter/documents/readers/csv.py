"""CSV and TSV.

The first line names the columns. The separator (comma, semicolon or tab) is whichever occurs most in it. Every value
is text, because the file has no types; an empty one is None.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.readers.base import Problem, Record, Row, has_lone_surrogates, line_limit
from ml_filter.documents.readers.columns import check_columns, check_unique
from ml_filter.documents.readers.files import DamagedFile, InputFile
from ml_filter.errors import InputError

_LINE_END = re.compile(r"[\r\n]")


def read_records(file: InputFile, source: SourceConfig, *, is_table: bool = False) -> Iterator[Record]:
    """The rows below the first line.

    Args:
        is_table: rows need no text.

    Raises:
        InputError: the first line does not name the columns, or a column is missing.
    """
    csv.field_size_limit(line_limit(source))  # a longer value is probably a quote that is never closed
    location = "line 0"
    try:
        stream = file.text_stream()
        first = _LINE_END.split(stream.peek(2**13).decode(errors="replace"), maxsplit=1)[0]
        with io.TextIOWrapper(stream, "utf-8", errors="surrogateescape", newline="") as text:
            separator = max(",;\t", key=first.count)
            if first.startswith("sep=") and len(first) == 5:  # for Excel
                separator = first[4]
                text.readline()
            rows = csv.reader(text, delimiter=separator, strict=True)
            header: list[str] | None = None
            while True:
                location = f"line {rows.line_num + 1}"
                try:
                    cells = next(rows)
                except StopIteration:
                    return
                except csv.Error as error:
                    if header is None:
                        raise InputError(
                            f"{file.uri}, {location}: {error}; the first line must name the columns"
                        ) from None
                    yield location, Problem("invalid_csv", str(error))
                    continue
                if header is None:
                    header = _column_names(cells, file.uri)
                    if not is_table:
                        check_columns(header, source, file.uri)
                elif cells:
                    yield location, _row(header, cells)
    except DamagedFile as error:
        yield f"after {location}", Problem(error.reason, str(error))


def _column_names(cells: list[str], uri: str) -> list[str]:
    if has_lone_surrogates(cells):
        raise InputError(f"{uri} is not UTF-8; save it as UTF-8")
    if not any(cells):
        raise InputError(f"{uri} begins with an empty line; the first line must name the columns")
    check_unique(cells, uri)
    return cells


def _row(header: list[str], cells: list[str]) -> Row | Problem:
    if has_lone_surrogates(cells):
        return Problem("invalid_utf8", "not UTF-8")
    if len(cells) != len(header):
        return Problem("invalid_csv", f"{len(cells)} values for {len(header)} columns")
    return {name: cell or None for name, cell in zip(header, cells, strict=True)}
