"""Read scored documents twice: what a choice rests on, then whole documents, in the same rows both times."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import NamedTuple

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.manifest import find_manifest
from ml_filter.documents.readers import InputShard, installed, known_rows, read_shard
from ml_filter.documents.readers.base import BATCH_ROWS
from ml_filter.documents.rejects import RejectsLog
from ml_filter.documents.sources import list_shards
from ml_filter.errors import InputError

_NARROW_ROWS = 20_000
"""Rows of a batch without texts."""


class _Written(NamedTuple):
    """What a manifest says of a shard: the directory that it lies in, and its rows."""

    directory: str
    rows: int


class Corpus:
    """Scored documents, shard by shard.

    Of the shards of a manifest single columns can be read: their texts were checked when they were first read. In other
    files any row may have to be rejected for its text, so they are read whole both times. What cannot be read of them
    is a reject; a shard of a manifest was whole when it was written, so there it is an error.

    Raises:
        InputError: a path does not exist, matches nothing, is not finished or has an unknown format.
    """

    def __init__(self, source: SourceConfig) -> None:
        self.source = source
        self.shards, self.parents = list_shards(source)
        self._written = _shards_of_manifests(source)

    @property
    def name(self) -> str:
        """What the user called it."""
        return ", ".join(self.source.paths)

    @cached_property
    def rows(self) -> int | None:
        """How many documents there are, where that is known; for progress bars."""
        return known_rows(self.shards)

    def schemas(self) -> Iterator[pa.Schema]:
        """The columns of each shard; of formats without a schema, those of its first documents.

        Raises:
            InputError: no document can be read, or a shard of a manifest is damaged.
        """
        rejects, found = RejectsLog(), False
        for shard in self.shards:
            if shard.uri in self._written:
                with _opened(shard, self._written[shard.uri]) as file:
                    schema = file.schema_arrow
            else:
                table = next(read_shard(shard, self.source, rejects), None)
                schema = None if table is None else table.schema
            if schema is not None:
                found = True
                yield schema
        if not found:
            raise self.nothing_read(rejects.counts)

    def nothing_read(self, rejected: dict[str, int]) -> InputError:
        """The error where no document could be read."""
        return InputError(f"no document could be read from {self.name}: {dict(rejected)}")

    def tables(
        self, shard: InputShard, rejects: RejectsLog, columns: Sequence[str] | None = None
    ) -> Iterator[tuple[int, pa.Table]]:
        """The documents of a shard in tables, each with the number of its first document within the shard.

        Args:
            columns: those that are needed; others may be there too, and one that the shard lacks is not.

        Raises:
            InputError: a shard of a manifest is damaged.
        """
        written, first = self._written.get(shard.uri), 0
        for table in (
            read_shard(shard, self.source, rejects) if written is None else _read_columns(shard, written, columns)
        ):
            yield first, table
            first += table.num_rows


def _shards_of_manifests(source: SourceConfig) -> dict[str, _Written]:
    if source.text_column != "text" or source.id_column not in (None, "id"):
        return {}
    found: dict[str, _Written] = {}
    for path in source.paths:
        if path != installed.URI and not path.startswith("hf://datasets/"):
            manifest = find_manifest(path)
            if manifest is not None:
                found |= {manifest.path_of(shard.path): _Written(path, shard.rows) for shard in manifest.shards}
    return found


@contextmanager
def _opened(shard: InputShard, written: _Written) -> Iterator[pq.ParquetFile]:
    """A shard of a manifest.

    Raises:
        InputError: it is missing, damaged or has other rows.
    """
    try:
        with fsspec.open(shard.uri, "rb") as raw:
            file = pq.ParquetFile(raw, pre_buffer=True)
            if file.metadata.num_rows != written.rows:
                raise InputError(
                    f"{shard.uri} has {file.metadata.num_rows:,} rows, {written.rows:,} by the manifest beside it; "
                    f"{_way_out(written)}"
                )
            yield file
    except (pa.ArrowException, OSError) as error:
        what = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise InputError(f"{shard.uri} cannot be read ({what}); if it is damaged, {_way_out(written)}") from error


def _way_out(written: _Written) -> str:
    return f"delete {written.directory} and score again"


def _read_columns(shard: InputShard, written: _Written, columns: Sequence[str] | None) -> Iterator[pa.Table]:
    with _opened(shard, written) as file:
        there = file.schema_arrow.names if columns is None else [c for c in file.schema_arrow.names if c in columns]
        size = BATCH_ROWS if "text" in there else _NARROW_ROWS
        for group in range(file.num_row_groups):  # one after the other: those that are asked for are buffered
            for batch in file.iter_batches(batch_size=size, row_groups=[group], columns=there):
                yield pa.Table.from_batches([batch])
