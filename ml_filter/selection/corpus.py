"""Read scored documents twice: what a choice rests on, then whole documents, in the same rows both times."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from ml_filter.documents import installed
from ml_filter.documents.manifest import find_manifest
from ml_filter.documents.readers import BATCH_ROWS, known_rows, read_shard
from ml_filter.documents.rejects import RejectsLog
from ml_filter.documents.sources import InputShard, list_shards
from ml_filter.errors import InputError
from ml_filter.settings import SourceConfig

_NARROW_ROWS = 20_000
"""Rows of a batch without texts."""


class Corpus:
    """Scored documents, shard by shard.

    Of the shards of a manifest single columns can be read: their texts were checked when they were first read. In other
    files any row may have to be rejected for its text, so they are read whole both times.

    Raises:
        InputError: a path does not exist, matches nothing, is not finished or has an unknown format.
    """

    def __init__(self, source: SourceConfig) -> None:
        self.source = source
        self.shards, self.parents = list_shards(source)
        self._checked = _shards_of_manifests(source)

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
            InputError: no document can be read.
        """
        rejects, found = RejectsLog(), False
        for shard in self.shards:
            if shard.uri in self._checked:
                schema = _schema(shard)
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
        """
        if shard.uri in self._checked:
            yield from _read_columns(shard, rejects, columns)
            return
        first = 0
        for table in read_shard(shard, self.source, rejects):
            yield first, table
            first += table.num_rows


def _shards_of_manifests(source: SourceConfig) -> set[str]:
    if source.text_column != "text" or source.id_column not in (None, "id"):
        return set()
    found: set[str] = set()
    for path in source.paths:
        if path != installed.URI and not path.startswith("hf://datasets/"):
            manifest = find_manifest(path)
            found.update(manifest.shard_paths() if manifest is not None else ())
    return found


def _schema(shard: InputShard) -> pa.Schema | None:
    try:
        with fsspec.open(shard.uri, "rb") as raw:
            return pq.read_schema(raw)
    except (pa.ArrowException, OSError):  # reading it will say what is wrong with it
        return None


def _read_columns(
    shard: InputShard, rejects: RejectsLog, columns: Sequence[str] | None
) -> Iterator[tuple[int, pa.Table]]:
    try:
        raw = fsspec.open(shard.uri, "rb").open()
    except OSError as error:
        rejects.add(shard.uri, "file", "unreadable", f"{type(error).__name__}: {error}")
        return
    with raw:
        try:
            file = pq.ParquetFile(raw, pre_buffer=True)
        except (pa.ArrowException, OSError) as error:
            rejects.add(shard.uri, "file", "unreadable", str(error))
            return
        there = file.schema_arrow.names if columns is None else [c for c in file.schema_arrow.names if c in columns]
        size = BATCH_ROWS if "text" in there else _NARROW_ROWS
        first = 0
        for group in range(file.num_row_groups):
            end = first + file.metadata.row_group(group).num_rows
            try:
                for batch in file.iter_batches(batch_size=size, row_groups=[group], columns=there):
                    yield first, pa.Table.from_batches([batch])
                    first += batch.num_rows
            except (pa.ArrowException, OSError) as error:
                rejects.add(shard.uri, f"rows {first} to {end - 1}", "unreadable", str(error))
            first = end
