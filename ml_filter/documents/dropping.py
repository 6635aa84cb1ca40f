"""Drop documents from a corpus shard by shard, and record beside the shards which were dropped and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.finished import first_reject
from ml_filter.documents.manifest import Manifest
from ml_filter.documents.output_directory import OutputDirectory
from ml_filter.documents.readers import InputShard, known_rows, read_shard
from ml_filter.documents.rejects import nothing_read
from ml_filter.documents.writer import ShardWriter
from ml_filter.progress import progress

DROPPED_DIRECTORY = "dropped"
"""Has one Parquet file per shard: the id of each dropped document and why; its column `reason` is counted."""


class KeptAndDropped(NamedTuple):
    """The documents of a table to keep, with any new columns, and a row for each document that is dropped."""

    kept: pa.Table
    dropped: pa.Table


def drop_documents(
    out: OutputDirectory,
    shards: Sequence[InputShard],
    source: SourceConfig,
    divide: Callable[[InputShard, int, pa.Table], KeptAndDropped],
    dropped_schema: pa.Schema,
    title: str,
) -> Manifest:
    """Divide the tables of each unfinished shard and commit the kept and the dropped documents.

    Args:
        divide: called with the shard, the number of its documents before the table, and the table.
        title: of the progress bar.

    Raises:
        InputError: no document could be read.
    """
    results = []
    total: Counter[str] = Counter()
    with progress(title, known_rows(shards)) as bar:
        for shard in shards:
            result = out.finished_shard(shard.name)
            if result is None:
                counts: Counter[str] = Counter(read=0, kept=0, dropped=0)
                with (
                    out.new_shard(shard.name) as writer,
                    ShardWriter(out.scratch / f"{shard.name}.dropped.parquet", dropped_schema) as dropped,
                    out.new_rejects(shard.name) as rejects,
                ):
                    for table in read_shard(shard, source, rejects):
                        divided = divide(shard, counts["read"], table)
                        writer.write(divided.kept)
                        dropped.write(divided.dropped)
                        counts.update(read=table.num_rows, kept=divided.kept.num_rows, dropped=divided.dropped.num_rows)
                        counts.update(f"dropped_{reason}" for reason in divided.dropped["reason"].to_pylist())
                        bar.advance(table.num_rows)
                out.put_file(dropped.path, f"{DROPPED_DIRECTORY}/{shard.name}.parquet")
                result = out.commit(shard.name, writer, rejects, counts)
            else:
                bar.advance(result.counts["read"])
            results.append((shard.name, result))
            total.update(result.counts)
    if total["read"] == 0:
        raise nothing_read(source.paths, total, first=first_reject(results))
    return out.finish(results)


def split_table(table: pa.Table, keep: NDArray[np.bool_]) -> tuple[pa.Table, list[str]]:
    """The rows to keep and the ids of the others."""
    return table.filter(pa.array(keep)), table["id"].filter(pa.array(~keep)).to_pylist()
