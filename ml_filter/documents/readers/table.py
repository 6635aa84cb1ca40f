"""Read a table that need not hold documents: labels, ratings, gold."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.readers import mongodb
from ml_filter.documents.readers.base import InputShard, Problem, Row, Rows
from ml_filter.documents.readers.documents import file_parts
from ml_filter.documents.readers.files import DamagedFile, opened
from ml_filter.documents.readers.parquet import read_tables
from ml_filter.documents.rejects import DAMAGE
from ml_filter.errors import InputError

_LIMITS = SourceConfig(max_text_bytes=2**26)


def read_rows(shard: InputShard, columns: Collection[str] | None = None) -> Iterator[tuple[str, Row]]:
    """Each row of a table with its location, such as `gold.csv, line 3`, for error messages.

    Unlike `read_shard`, it needs no text column, and an unreadable row is an error: figures must not depend on which
    rows happened to be readable.

    Args:
        columns: the columns to read from Parquet (None: all); rows of other formats have all their columns.

    Raises:
        InputError: a row cannot be read, or the shard has another format.
    """
    if shard.format == "parquet":
        rows = (row for table in read_tables(shard.uri, columns) for row in table.to_pylist())
        yield from ((f"{shard.uri}, row {number}", row) for number, row in enumerate(rows))
        return
    if shard.format == "mongodb":
        for location, row in mongodb.read_records(shard):
            if isinstance(row, Problem):
                raise InputError(_described(shard.uri, location, row))
            yield f"{shard.uri}, {location}", row
        return
    if shard.format in ("warc", "pdf", "hub", "installed"):
        raise InputError(f"{shard.uri}: tables are Parquet, Arrow, JSON lines, CSV or MongoDB, not {shard.format}")
    try:
        with opened(shard.uri) as file:
            for location, part in file_parts(file, shard, _LIMITS, is_table=True):
                if isinstance(part, Problem):
                    raise InputError(_described(shard.uri, location, part))
                if isinstance(part, Rows):
                    yield from ((f"{shard.uri}, {row_location}", row) for row_location, row in part.records())
                else:
                    yield f"{shard.uri}, {location}", part
    except DamagedFile as error:
        raise InputError(f"{shard.uri} cannot be read: {error}") from error


def _described(uri: str, location: str | int, problem: Problem) -> str:
    if problem.reason in DAMAGE:
        return f"{uri} cannot be read: {location}: {problem.detail}"
    return f"{uri}, {location}: {problem.detail}"
