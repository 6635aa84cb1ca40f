"""Score a corpus shard by shard: every input column, plus `score`, `int_score` and `score_status`.

A head of several criteria writes `score_<criterion>` and `int_score_<criterion>` for each.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from ml_filter.documents.manifest import Manifest
from ml_filter.documents.output import OutputDirectory, join_tables
from ml_filter.documents.shards import Transformed, map_shards
from ml_filter.documents.sources import list_shards
from ml_filter.heads.train import head_parent
from ml_filter.scoring.engine import Engine, load_engine
from ml_filter.settings import ScoreConfig, SourceConfig

_CHUNK_ROWS = 4000
_CHUNK_BYTES = 64 * 2**20


def score_corpus(
    model_directory: str | Path, source: SourceConfig, config: ScoreConfig, output: str | Path
) -> Manifest:
    """Score every document of a corpus; one output shard an input shard, in memory that does not grow with it.

    Killed and called again, it goes on with the first shard that is not finished. A column of the input that is
    named like one of ours is kept as `input_<name>`.

    Raises:
        InputError: the head, the source or the output directory is not what it should be.
    """
    shards, parents = list_shards(source)
    settings = {"source": source.model_dump(mode="json"), "score": config.model_dump(mode="json")}
    with OutputDirectory(output, "scored", settings, [*parents, head_parent(model_directory)]) as out:
        if out.manifest:
            return out.manifest
        engine = load_engine(model_directory, config)

        def score(tables: Iterator[pa.Table]) -> Iterator[Transformed]:
            for table in _chunks(tables):
                yield _with_scores(table, engine)

        return map_shards(out, shards, source, score, "Scoring")


def _chunks(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Larger tables, so that batches of like length are full; bounded in rows and bytes."""
    pending: list[pa.Table] = []
    for table in tables:
        pending.append(table)
        if sum(t.num_rows for t in pending) >= _CHUNK_ROWS or sum(t.nbytes for t in pending) >= _CHUNK_BYTES:
            yield join_tables(pending)
            pending = []
    if pending:
        yield join_tables(pending)


def _with_scores(table: pa.Table, engine: Engine) -> Transformed:
    criteria = engine.info.criteria
    scores = engine.score(table["text"].to_pylist()).astype(np.float64)
    failed = ~np.isfinite(scores).all(axis=1)
    made: dict[str, pa.Array] = {}
    for criterion, column in zip(criteria, scores.T, strict=True):
        of = f"_{criterion.name}" if len(criteria) > 1 else ""
        made[f"score{of}"] = pa.array(column, mask=failed)
        whole = criterion.integer_scores(np.where(failed, criterion.low, column))
        made[f"int_score{of}"] = pa.array(whole, mask=failed)
    made["score_status"] = pa.array(np.where(failed, "failed", "scored"))
    table = table.rename_columns([f"input_{name}" if name in made else name for name in table.column_names])
    for name, values in made.items():
        table = table.append_column(name, values)
    return Transformed(table, {"scored": int((~failed).sum()), "failed": int(failed.sum())})
