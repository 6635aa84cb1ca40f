"""Commands on heads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ml_filter.cli.app import app
from ml_filter.cli.options import (
    IdColumn,
    LabelColumn,
    OneSource,
    Output,
    Split,
    Subset,
    TextColumn,
    example,
    source_config,
)
from ml_filter.cli.output import figures_of, show_table


@app.command(
    epilog=example(
        "ml-filter train runs/scores --output runs/head",
        "ml-filter train labelled.jsonl --label-column llama3_70b_score --encoder intfloat/multilingual-e5-small "
        "--output runs/head",
    )
)
def train(
    labels: OneSource,
    output: Output,
    label_column: LabelColumn = "score",
    encoder: Annotated[
        str | None, typer.Option(help="Hub name or directory (default: all-MiniLM-L6-v2, which is installed)")
    ] = None,
    criterion: Annotated[
        str | None, typer.Option(help="Which of several criteria of aggregated scores (default: the only one)")
    ] = None,
    documents: Annotated[
        str | None, typer.Option(help="Documents of aggregated scores (default: those that were annotated)")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="YAML with any setting of the training; options go before it")
    ] = None,
    score_min: Annotated[float | None, typer.Option(help="Lowest label (default: 0)")] = None,
    score_max: Annotated[float | None, typer.Option(help="Highest label (default: 5)")] = None,
    seed: Annotated[int | None, typer.Option(help="Draws the test documents (default: 0)")] = None,
    text_column: TextColumn = "text",
    id_column: IdColumn = None,
    split: Split = "train",
    subset: Subset = None,
) -> None:
    """Fit a regression head on a frozen encoder and evaluate it on documents kept apart."""
    from ml_filter.heads.train import train_head
    from ml_filter.settings import SourceConfig, TrainConfig, read_yaml

    given = {"encoder": encoder, "criterion": criterion, "score_min": score_min, "score_max": score_max, "seed": seed}
    settings = TrainConfig.model_validate(
        {
            **(read_yaml(config) if config else {}),
            "label_column": label_column,
            **{name: value for name, value in given.items() if value is not None},
        }
    )
    source = source_config([labels], text_column, id_column, split, subset)
    head = train_head(source, settings, output, SourceConfig(paths=[documents]) if documents else None)
    result = head.training
    counts = {
        "trained on": result.train_documents,
        "tested on": result.test_documents,
        "without label": result.unlabelled,
    }
    show_table("head", head.directory, counts, figures_of(result.evaluation))


@app.command(
    epilog=example("ml-filter evaluate runs/head gold.jsonl --label-column human_score --output runs/evaluation")
)
def evaluate(
    model_dir: Annotated[Path, typer.Argument(help="Directory made by train")],
    gold: OneSource,
    label_column: LabelColumn,
    output: Output,
    text_column: TextColumn = "text",
    id_column: IdColumn = None,
    split: Split = "train",
    subset: Subset = None,
) -> None:
    """Compare a head's scores with labels: figures as JSON, a page with a plot, and each document's score."""
    from ml_filter.heads.evaluate import evaluate_head

    source = source_config([gold], text_column, id_column, split, subset)
    evaluation, manifest = evaluate_head(model_dir, source, label_column, output)
    show_table("evaluation", output, manifest.counts, figures_of(evaluation))
