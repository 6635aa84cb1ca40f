"""Transform a shard of a corpus: one output shard an input shard, so that a run can go on at every shard."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import pyarrow as pa
from loguru import logger

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.output import OutputDirectory, ShardResult
from ml_filter.documents.readers import InputShard, read_shard
from ml_filter.documents.sources import shard_state
from ml_filter.errors import InputError


class Transformed(NamedTuple):
    """A table to write and what to add to the counts."""

    table: pa.Table
    counts: dict[str, int]


Transform = Callable[[Iterator[pa.Table]], Iterator[Transformed]]


class DamagedShard(Exception):
    """A shard of which nothing is written, since part of it or all of it cannot be read."""


def map_shard(
    out: OutputDirectory,
    shard: InputShard,
    source: SourceConfig,
    transform: Transform,
    advance: Callable[[int], None],
    damaged: Literal["reject", "fail", "keep"] = "reject",
) -> ShardResult:
    """Read one shard, transform its tables, and commit what comes out.

    Args:
        advance: is told how many more documents were dealt with.
        damaged: what becomes of a shard that is truncated or has unreadable parts. `reject`: what can be read is
            transformed, the rest is a reject, and a column that is missing ends the run. `fail`: DamagedShard is
            raised. `keep`: that is raised only where nothing can be read.

    Raises:
        DamagedShard: as `damaged` says; nothing is written then.
        InputError: a column that the source configuration names does not exist.
    """
    started = time.monotonic()
    state = shard_state(shard)
    counts: Counter[str] = Counter(read=0)
    with out.new_shard(shard.name) as writer, out.new_rejects(shard.name) as rejects:

        def tables() -> Iterator[pa.Table]:
            try:
                for table in read_shard(shard, source, rejects):
                    counts["read"] += table.num_rows
                    yield table
            except Exception as error:  # of a file system, a decoder or the Hub: there is no common base
                if damaged == "reject":
                    raise
                raise DamagedShard(str(error) if isinstance(error, InputError) else _described(error)) from error

        told = 0
        for made in transform(tables()):
            writer.write(made.table)
            counts.update(made.counts)
            advance(counts["read"] - told)
            told = counts["read"]
        if rejects.damage and (damaged == "fail" or (damaged == "keep" and counts["read"] == 0)):
            raise DamagedShard(rejects.damage)
    if counts["read"] == rejects.total == 0:
        logger.warning(f"{shard.uri} is empty")
        counts["shards_empty"] = 1
    return out.commit(shard.name, writer, rejects, counts, state, time.monotonic() - started)


def require_documents(source: SourceConfig, results: Sequence[ShardResult]) -> None:
    """Whether any document was read at all.

    Raises:
        InputError: none was.
    """
    counts = sum((Counter(result.counts) for result in results), Counter())
    if counts["read"] == 0:
        raise InputError(f"no document could be read from {', '.join(source.paths)}: {dict(counts)}")


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
