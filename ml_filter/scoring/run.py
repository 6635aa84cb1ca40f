"""Score a corpus shard by shard: every input column, plus `score`, `int_score` and `score_status`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from ml_filter.documents.manifest import Manifest
from ml_filter.documents.output import OutputDirectory, join_tables
from ml_filter.documents.shards import Transformed, map_shards
from ml_filter.documents.sources import list_shards
from ml_filter.heads.metrics import integer_scores
from ml_filter.heads.train import head_parent, load_head
from ml_filter.scoring.engine import ScoringEngine
from ml_filter.settings import ScoreConfig, SourceConfig

SCORE_COLUMNS = ("score", "int_score", "score_status")
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
        model, tokenizer = load_head(model_directory)
        engine = ScoringEngine(model, tokenizer, config)

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


def _with_scores(table: pa.Table, engine: ScoringEngine) -> Transformed:
    config = engine.model.config
    scores = engine.score(table["text"].to_pylist()).astype(np.float64)
    failed = ~np.isfinite(scores)
    integers = integer_scores(np.where(failed, config.score_min, scores), config.score_min, config.score_max)
    table = table.rename_columns([f"input_{n}" if n in SCORE_COLUMNS else n for n in table.column_names])
    table = table.append_column("score", pa.array(scores, mask=failed))
    table = table.append_column("int_score", pa.array(integers, mask=failed))
    table = table.append_column("score_status", pa.array(np.where(failed, "failed", "scored")))
    return Transformed(table, {"scored": int((~failed).sum()), "failed": int(failed.sum())})
