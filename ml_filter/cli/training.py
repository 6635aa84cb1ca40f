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
from ml_filter.cli.output import figures_of, show_evaluation, show_table


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
    label_column: Annotated[
        list[str] | None, typer.Option(help="Column of the labels; several: several criteria (default: score)")
    ] = None,
    engine: Annotated[str | None, typer.Option(help="encoder, hashing, static or stack (default: encoder)")] = None,
    encoder: Annotated[
        str | None, typer.Option(help="Hub name or directory (default: all-MiniLM-L6-v2, which is installed)")
    ] = None,
    criterion: Annotated[
        list[str] | None, typer.Option(help="Which criteria of aggregated scores (default: all there are)")
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

    given = {
        "label_column": label_column,
        "engine": engine,
        "encoder": encoder,
        "criterion": criterion,
        "score_min": score_min,
        "score_max": score_max,
        "seed": seed,
    }
    settings = TrainConfig.model_validate(
        {
            **(read_yaml(config) if config else {}),
            **{name: value for name, value in given.items() if value not in (None, [])},
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
    epilog=example(
        "ml-filter evaluate runs/head gold.jsonl --label-column human_score --output runs/evaluation",
        "ml-filter evaluate runs/new gold.jsonl --label-column human_score --compare runs/production "
        "--output runs/comparison",
    )
)
def evaluate(
    model_dir: Annotated[Path, typer.Argument(help="Directory made by train")],
    gold: OneSource,
    label_column: LabelColumn,
    output: Output,
    compare: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Another head, such as the current one, on the same documents")
    ] = None,
    criterion: Annotated[str | None, typer.Option(help="Which criterion of the head (default: its only one)")] = None,
    text_column: TextColumn = "text",
    id_column: IdColumn = None,
    split: Split = "train",
    subset: Subset = None,
) -> None:
    """Compare a head's scores with labels: figures with intervals, a page with plots, and each document's score."""
    from ml_filter.heads.evaluate import evaluate_head

    source = source_config([gold], text_column, id_column, split, subset)
    evaluation, manifest = evaluate_head(model_dir, source, label_column, output, compare, criterion)
    show_evaluation(evaluation, manifest)


@app.command(
    epilog=example(
        "ml-filter push-model runs/head --repo OWNER/NAME --evaluation runs/evaluation --license apache-2.0 --private"
    )
)
def push_model(
    model_dir: Annotated[Path, typer.Argument(help="Directory made by train")],
    repo: Annotated[str, typer.Option(metavar="OWNER/NAME", help="Repository on the Hub; made where there is none")],
    evaluation: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="Directory made by evaluate, for the model card; several: one each"),
    ] = None,
    license: Annotated[str, typer.Option(help="Identifier for the model card, such as apache-2.0")] = "unknown",
    private: Annotated[bool, typer.Option("--private", help="Make it private; a public repository is refused")] = False,
) -> None:
    """Upload a head to the Hugging Face Hub, with a model card that is filled from its training and evaluations."""
    from ml_filter.storage.push_model import push_model as push

    print(push(model_dir, repo, private=private, evaluations=evaluation or [], license=license))
