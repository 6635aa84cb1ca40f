"""JSON lines, plain or compressed."""

from __future__ import annotations

import json
import re
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

_SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")


def read_records(raw: IO[bytes], uri: str, source: SourceConfig, *, allow_surrogates: bool = False) -> Iterator[Record]:
    """The JSON object of each line; blank lines are skipped.

    Args:
        allow_surrogates: accept strings that are not Unicode text, which Arrow cannot store.
    """
    limit = line_limit(source)
    stream = decompressed(raw, uri)
    number = 0
    try:
        while line := stream.readline(limit):
            number += 1
            if len(line) >= limit and not line.endswith(b"\n"):
                size = len(line)
                while (piece := stream.readline(2**20)) and not piece.endswith(b"\n"):
                    size += len(piece)
                yield f"line {number}", Problem("text_too_long", f"a line of at least {size:,} bytes")
            elif line.strip():
                yield f"line {number}", _parsed(line, allow_surrogates)
    except TRUNCATION_ERRORS as error:
        yield f"after line {number}", Problem("truncated", str(error))


def _parsed(line: bytes, allow_surrogates: bool) -> Row | Problem:
    try:
        row = json.loads(line)
    except UnicodeDecodeError as error:
        return Problem("invalid_utf8", f"byte {error.start} of the line: {error.reason}")
    except (ValueError, RecursionError) as error:  # ValueError: also a number of thousands of digits
        return Problem("invalid_json", f"not JSON: {error}")
    if not isinstance(row, dict):
        return Problem("invalid_json", f"a JSON {type(row).__name__}, not an object")
    if not allow_surrogates and _SURROGATE_ESCAPE.search(line) and has_lone_surrogates(row):
        return Problem("invalid_utf8", "lone surrogates")
    return row
