"""Commands on a whole corpus."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

import typer

from ml_filter.cli.app import app
from ml_filter.cli.options import (
    IdColumn,
    OneSource,
    Output,
    Sources,
    Split,
    Subset,
    TextColumn,
    example,
    source_config,
)
from ml_filter.cli.output import show


@app.command(
    epilog=example(
        "ml-filter score runs/head 'corpus/*.parquet' --output runs/scored",
        "ml-filter score runs/head crawl.warc.gz pages.jsonl.zst --output runs/scored",
    )
)
def score(
    model_dir: Annotated[Path, typer.Argument(help="Directory made by train")],
    source: Sources,
    output: Output,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32 or bfloat16")] = "auto",
    batch_tokens: Annotated[int, typer.Option(min=64, help="Padded tokens in a batch")] = 4096,
    text_column: TextColumn = "text",
    id_column: IdColumn = None,
    split: Split = "train",
    subset: Subset = None,
) -> None:
    """Score a corpus shard by shard to Parquet with score, int_score and score_status."""
    from ml_filter.scoring.run import score_corpus
    from ml_filter.settings import ScoreConfig

    config = ScoreConfig(device=device, dtype=cast(Any, dtype), batch_tokens=batch_tokens)
    show(score_corpus(model_dir, source_config(source, text_column, id_column, split, subset), config, output))


@app.command("filter", epilog=example("ml-filter filter runs/scored --min-score 3 --output runs/filtered"))
def filter_(
    scored: OneSource,
    output: Output,
    min_score: Annotated[float, typer.Option(help="Keep documents with at least this score")],
) -> None:
    """Keep the documents whose score reaches a minimum."""
    from ml_filter.selection.select import filter_corpus
    from ml_filter.settings import FilterConfig, SourceConfig

    show(filter_corpus(SourceConfig(paths=[scored]), FilterConfig(min_score=min_score), output))
