"""JSON values that span lines: pretty-printed objects, one after another or in an array."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from typing import IO, Any

from ml_filter.documents.readers.base import Problem, has_lone_surrogates
from ml_filter.documents.rejects import DAMAGE

_BETWEEN_VALUES = re.compile(r"[\s,\[\]\ufeff]*")
_BLOCK = 2**16
_NOT_THE_END = 16
"""An error this many characters before the end of what was read is not because the rest is missing."""


def read_values(stream: IO[bytes], line: int, limit: int) -> Iterator[tuple[str, Any]]:
    """The values of a stream, or what is wrong with them, with their locations; the items of an array are values.

    After a value that is not JSON, the next one is looked for at the same indentation.

    Args:
        line: number of the first line.
        limit: length of the longest value.
    """
    values = _Values(io.TextIOWrapper(stream, "utf-8", errors="surrogateescape", newline=""), line)
    while values.skip_punctuation():
        location = f"line {values.line}"
        value = values.next_value(limit)
        if isinstance(value, Problem):
            if value.reason != "truncated" and values.indent is None:
                value = Problem("unreadable", f"{value.detail}; the rest of the file is left out")
            yield location, value
            if value.reason in DAMAGE or not values.find_next_start():
                return
        elif has_lone_surrogates(value):
            yield location, Problem("invalid_utf8", "not UTF-8, or lone surrogates")
        else:
            yield location, value
    if values.depth > 0:
        yield f"line {values.line}", Problem("truncated", "the array is not closed")


class _Values:
    """A position in a text of JSON values.

    Attributes:
        line: number of the line at the position.
        depth: number of arrays that are open.
        indent: white space before the value, if it begins a line; None: it does not.
    """

    def __init__(self, text: io.TextIOWrapper, line: int) -> None:
        self._text, self.line, self.depth = text, line, 0
        self._buffer, self._position, self._is_end = "", 0, False
        self.indent: str | None = ""

    def skip_punctuation(self) -> bool:
        """Move to the next value; whether there is one."""
        skipped = ""
        while True:
            match = _BETWEEN_VALUES.match(self._buffer, self._position)
            assert match is not None
            skipped += match[0]
            self._advance(match.end())
            if self._position < len(self._buffer) or not self._read_more():
                break
        self.depth += skipped.count("[") - skipped.count("]")
        if skipped:
            self.indent = skipped.rpartition("\n")[2] if "\n" in skipped else None
        return self._position < len(self._buffer)

    def next_value(self, limit: int) -> Any:
        """The value at this position, or the problem with it."""
        while True:
            try:
                value, end = json.JSONDecoder().raw_decode(self._buffer, self._position)
            except json.JSONDecodeError as error:
                left = len(self._buffer) - error.pos
                is_cut_off = left < _NOT_THE_END or error.msg.startswith("Unterminated string")
                if len(self._buffer) - self._position > limit:
                    return Problem("text_too_long", f"an object of more than {limit:,} characters")
                if is_cut_off and self._read_more():
                    continue
                if is_cut_off and self.depth + self._buffer.startswith("{", self._position) > 0:
                    return Problem("truncated", f"the file ends within a value: {error.msg}")
                return Problem(
                    "invalid_json", f"not JSON: {error.msg} at line {self.line + self._lines_before(error.pos)}"
                )
            except (ValueError, RecursionError) as error:  # ValueError: a number of thousands of digits
                return Problem("invalid_json", f"not JSON: {error}")
            if end == len(self._buffer) and self._read_more():
                continue  # a number may go on
            self._advance(end)
            return value

    def find_next_start(self) -> bool:
        """Move to the next line that begins an object like the one at this position; whether there is one."""
        assert self.indent is not None
        start = re.compile(rf"\n{re.escape(self.indent)}(?=\{{)")
        while True:
            match = start.search(self._buffer, self._position + 1)
            if match:
                self._advance(match.end())
                return True
            self._advance(max(len(self._buffer) - len(self.indent) - 2, self._position))
            if not self._read_more():
                return False

    def _advance(self, position: int) -> None:
        self.line += self._lines_before(position)
        self._position = position

    def _lines_before(self, position: int) -> int:
        return self._buffer.count("\n", self._position, position)

    def _read_more(self) -> bool:
        left = self._buffer[self._position :]
        more = "" if self._is_end else self._text.read(max(_BLOCK, len(left)))
        self._is_end = not more
        self._buffer, self._position = left + more, 0
        return bool(more)
