"""What all formats share: input shards, records, checks of a text, and decompression.

The reader of a row format is a generator `read_records(raw, uri, source)` that yields each row, or the problem with it,
with its location in the file. It stops early only where the rest of the file cannot be read.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Any, Literal, NamedTuple, cast

import zstandard

from ml_filter.documents.config import SourceConfig

Format = Literal["parquet", "jsonl", "csv", "warc", "hub", "installed"]
BATCH_ROWS = 1000
BATCH_BYTES = 8 * 2**20
TRUNCATION_ERRORS = (EOFError, zlib.error, zstandard.ZstdError, gzip.BadGzipFile)
"""Raised by a decompressor whose input ends early or is damaged."""


@dataclass(frozen=True)
class InputShard:
    """The unit of reading and of resuming. `name` is unique within its source and names the output shard."""

    uri: str
    format: Format
    name: str = ""
    size: int | None = None
    part: tuple[int, int] = (0, 1)
    """Number of this shard and number of shards; only a Hub data set has several with the same URI."""
    rows: int | None = None
    """Number of rows that a manifest states; None for shards without a manifest."""


class Problem(NamedTuple):
    """Why a piece of input is not a document: a reason of `RejectsLog` and details."""

    reason: str
    detail: str = ""


Row = dict[str, Any]
Record = tuple[str, Row | Problem]
"""A location within the file, and the row at this location or the problem with it."""


def text_id(text: str) -> str:
    """The id of a document without one: a 128-bit BLAKE2b hash of its text, as 32 hex digits."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def problem_with_text(text: Any, source: SourceConfig) -> Problem | None:
    """Why a value cannot be the text of a document; None: it can."""
    if not isinstance(text, str):
        kind = "null" if text is None else type(text).__name__
        return Problem("missing_text", f"column {source.text_column!r} holds {kind}")
    if is_blank(text):
        return Problem("empty_text")
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        return Problem("invalid_utf8", "lone surrogates")
    if size > source.max_text_bytes:
        return Problem("text_too_long", f"{size:,} bytes, the limit max_text_bytes is {source.max_text_bytes:,}")
    return None


def is_blank(text: Any) -> bool:
    """Whether a value is null or has only white space."""
    return text is None or (isinstance(text, str) and not text.strip())


def line_limit(source: SourceConfig) -> int:
    """The longest line that is held in memory, in bytes: room for a text, its escapes and other columns."""
    return 2 * source.max_text_bytes + 2**20


def has_lone_surrogates(value: Row | Sequence[str]) -> bool:
    """Whether a string in the value cannot be encoded as UTF-8."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


def decompressed(raw: IO[bytes], uri: str) -> IO[bytes]:
    """The content of a file, by the ending of its name."""
    if uri.endswith(".gz"):
        return cast("IO[bytes]", gzip.open(raw))
    if uri.endswith(".zst"):
        return io.BufferedReader(_ZstdFrames(raw))
    return raw


class _ZstdFrames(io.RawIOBase):
    """Zstandard frames as a stream. Unlike `zstandard.stream_reader`, it raises EOFError if the last one is cut off."""

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw = raw
        self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._ready = memoryview(b"")
        self._started = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            compressed = self._frame.unused_data if self._frame.eof else b""
            compressed = compressed or self._raw.read(2**17)
            if not compressed:
                if self._started and not self._frame.eof:
                    raise EOFError("the last zstandard frame is cut off")
                return 0
            if self._frame.eof:
                self._frame = zstandard.ZstdDecompressor().decompressobj()
            self._started = True
            self._ready = memoryview(self._frame.decompress(compressed))
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count
