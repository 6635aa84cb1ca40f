"""What all formats share: input shards, records, and checks of a text and an id.

The reader of a format is a generator that yields each row (of tables, many at once), or the problem with it, with its
location in the file. It stops early only where the rest of the file cannot be read.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import pyarrow as pa

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.tables import json_text

Format = Literal["parquet", "arrow", "jsonl", "csv", "warc", "pdf", "hub", "installed", "mongodb"]
BATCH_ROWS = 1000
BATCH_BYTES = 8 * 2**20


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
    slice: str = ""
    """Which documents of a MongoDB collection (readers/mongodb.py)."""
    state: str | None = None
    """A digest that changes with the content, known without reading it; None: `sources.shard_state` tells."""
    partitions: tuple[tuple[str, str | None], ...] = ()
    """Columns that the directories of a Hive-partitioned table give to all rows, as in `language=de/part-0.parquet`."""


class Problem(NamedTuple):
    """Why a piece of input is not a document: a reason of `RejectsLog` and details."""

    reason: str
    detail: str = ""


Row = dict[str, Any]
Record = tuple[str, Row | Problem]
"""A location within the file, and the row at this location or the problem with it."""


class Rows(NamedTuple):
    """A table of rows, and the number of the first one in its file."""

    table: pa.Table
    first: int

    def records(self) -> Iterator[tuple[str, Row]]:
        """Each row with its location."""
        return ((f"row {number}", row) for number, row in enumerate(self.table.to_pylist(), self.first))


Part = tuple[str, Row | Problem | Rows]
"""A location within the file, and what is there."""


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


def id_text(value: Any) -> str | None:
    """The id of a document as text; None: it has none."""
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bytes):
        try:
            text = value.decode()
        except UnicodeDecodeError:
            return value.hex()
        return text if text.isprintable() else value.hex()
    return json_text(value) if isinstance(value, dict | list | bool) else str(value)


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
