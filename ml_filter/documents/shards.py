"""Transform a corpus shard by shard: one output shard an input shard, resumable at every shard."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import pyarrow as pa

from ml_filter.documents.manifest import Manifest
from ml_filter.documents.output import OutputDirectory
from ml_filter.documents.readers import known_rows, read_shard
from ml_filter.documents.rejects import RejectsLog
from ml_filter.documents.sources import InputShard
from ml_filter.errors import InputError
from ml_filter.progress import progress
from ml_filter.settings import SourceConfig


class Transformed(NamedTuple):
    """A table to write and what to add to the counts."""

    table: pa.Table
    counts: dict[str, int]


def map_shards(
    out: OutputDirectory,
    shards: Sequence[InputShard],
    source: SourceConfig,
    transform: Callable[[Iterator[pa.Table]], Iterator[Transformed]],
    what: str,
) -> Manifest:
    """Read each shard that is not done yet, transform its tables, and commit what comes out.

    Raises:
        InputError: no shard gave a document.
    """
    results = []
    read = 0
    with progress(what, known_rows(shards)) as bar:
        for shard in shards:
            result = out.done(shard.name)
            if result is None:
                counts: Counter[str] = Counter(read=0)
                with out.new_shard(shard.name) as writer, out.new_rejects(shard.name) as rejects:

                    def tables(
                        shard: InputShard = shard, rejects: RejectsLog = rejects, counts: Counter[str] = counts
                    ) -> Iterator[pa.Table]:
                        for table in read_shard(shard, source, rejects):
                            counts["read"] += table.num_rows
                            yield table

                    for made in transform(tables()):
                        writer.write(made.table)
                        counts.update(made.counts)
                        bar.advance(sum(made.counts.values()))
                result = out.commit(shard.name, writer, rejects, counts)
            else:
                bar.advance(result.counts["read"])
            results.append((shard.name, result))
            read += result.counts["read"]
    if read == 0:
        rejected = sum((Counter(result.counts) for _, result in results), Counter())
        raise InputError(f"no document could be read from {', '.join(source.paths)}: {dict(rejected)}")
    return out.finish(results)
