"""Drop documents from a corpus shard by shard, and write down beside the shards which and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.manifest import Manifest
from ml_filter.documents.output import OutputDirectory, ShardWriter
from ml_filter.documents.readers import InputShard, known_rows, read_shard
from ml_filter.errors import InputError
from ml_filter.progress import progress

DROPPED_DIRECTORY = "dropped"
"""Holds one Parquet file a shard: the id of each dropped document and why; its column `reason` is counted."""


class Verdict(NamedTuple):
    """Of one table: the documents to keep, with what is added to them, and a row for each that is dropped."""

    kept: pa.Table
    dropped: pa.Table


def drop_documents(
    out: OutputDirectory,
    shards: Sequence[InputShard],
    source: SourceConfig,
    judge: Callable[[InputShard, int, pa.Table], Verdict],
    dropped_schema: pa.Schema,
    what: str,
) -> Manifest:
    """Judge the tables of each shard that is not done yet and commit what is kept and what is dropped.

    Args:
        judge: gets the shard, the number of its documents before this table, and the table.

    Raises:
        InputError: no shard gave a document.
    """
    results = []
    read = 0
    with progress(what, known_rows(shards)) as bar:
        for shard in shards:
            result = out.done(shard.name)
            if result is None:
                counts: Counter[str] = Counter(read=0, kept=0, dropped=0)
                with (
                    out.new_shard(shard.name) as writer,
                    ShardWriter(out.scratch / f"{shard.name}.dropped.parquet", dropped_schema) as dropped,
                    out.new_rejects(shard.name) as rejects,
                ):
                    for table in read_shard(shard, source, rejects):
                        verdict = judge(shard, counts["read"], table)
                        writer.write(verdict.kept)
                        dropped.write(verdict.dropped)
                        counts.update(read=table.num_rows, kept=verdict.kept.num_rows, dropped=verdict.dropped.num_rows)
                        counts.update(f"dropped_{reason}" for reason in verdict.dropped["reason"].to_pylist())
                        bar.advance(table.num_rows)
                out.put_file(dropped.path, f"{DROPPED_DIRECTORY}/{shard.name}.parquet")
                result = out.commit(shard.name, writer, rejects, counts)
            else:
                bar.advance(result.counts["read"])
            results.append((shard.name, result))
            read += result.counts["read"]
    if read == 0:
        rejected = sum((Counter(result.counts) for _, result in results), Counter())
        raise InputError(f"no document could be read from {', '.join(source.paths)}: {dict(rejected)}")
    return out.finish(results)


def split_table(table: pa.Table, keep: NDArray[np.bool_]) -> tuple[pa.Table, list[str]]:
    """The rows to keep and the ids of the others."""
    return table.filter(pa.array(keep)), table["id"].filter(pa.array(~keep)).to_pylist()
