"""Commands that train, search, evaluate and publish heads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ml_filter.cli.command import Options, command
from ml_filter.cli.options import Documents, Head, Labels, Output
from ml_filter.cli.output import show_evaluation, show_head, show_search
from ml_filter.documents.config import SourceConfig
from ml_filter.heads.config import SearchConfig, TrainConfig


@command(
    "ml-filter train runs/scores --output runs/head",
    "ml-filter train labelled.jsonl --label-column llama3_70b_score --encoder intfloat/multilingual-e5-small "
    "--output runs/head",
    "ml-filter train labelled.jsonl --set head.model=mlp --set head.epochs=20 --output runs/head",
)
def train(labels: Labels, output: Output, train: TrainConfig, documents: Documents = None) -> None:
    """Train a head on labels and evaluate it on held-out documents."""
    from ml_filter.heads.train import train_head

    show_head(train_head(labels, train, output, documents))


@command(
    "ml-filter search labelled.jsonl --label-column llama3_70b_score --trials 60 --output runs/search",
    "ml-filter search runs/scores --metric macro_f1_at_threshold --kind encoder --kind hashing --output runs/search",
    "ml-filter train labelled.jsonl --config runs/search/best.yaml --output runs/head",
)
def search(
    labels: Labels,
    output: Output,
    search: Annotated[SearchConfig, Options(skip=("seed",))],
    documents: Documents = None,
) -> None:
    """Search the settings of a head by cross-validation on the training documents.

    The best settings are written to best.yaml, for train --config.
    """
    from ml_filter.heads.search import search_head

    if search.train.kind not in search.space.kind:
        train = search.train.model_copy(update={"kind": search.space.kind[0]})
        search = search.model_copy(update={"train": train})
    show_search(*search_head(labels, search, output, documents))


@command(
    "ml-filter evaluate runs/head gold.jsonl --label-column human_score --output runs/evaluation",
    "ml-filter evaluate runs/new gold.jsonl --label-column human_score --compare hf://OWNER/NAME@v1 "
    "--output runs/comparison",
)
def evaluate(
    head: Head,
    gold: Annotated[SourceConfig, Options("GOLD")],
    label_column: Annotated[str, typer.Option(metavar="COLUMN", help="Column with the labels")],
    output: Output,
    compare: Annotated[
        str | None, typer.Option(metavar="HEAD", help="Another head, such as the current one, on the same documents")
    ] = None,
    criterion: Annotated[
        str | None, typer.Option(metavar="NAME", help="Criterion of the head (default: its only one)")
    ] = None,
) -> None:
    """Compare the scores of a head with labels: figures with intervals, a page, and the score of each document."""
    from ml_filter.evaluation.evaluate import evaluate_head

    show_evaluation(*evaluate_head(head, gold, label_column, output, compare, criterion))


@command("ml-filter push-model runs/head --repo OWNER/NAME --evaluation runs/evaluation --license apache-2.0 --private")
def push_model(
    head: Head,
    repo: Annotated[str, typer.Option(metavar="OWNER/NAME", help="Repository on the Hub; created if it is missing")],
    evaluation: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="Directory made by evaluate, for the model card; repeatable"),
    ] = None,
    license: Annotated[
        str, typer.Option(metavar="LICENSE", help="Identifier for the model card, such as apache-2.0")
    ] = "unknown",
    private: Annotated[
        bool, typer.Option("--private", help="Create a private repository; fail if it exists and is public")
    ] = False,
) -> None:
    """Upload a head to the Hugging Face Hub, with a model card made from its training and evaluations."""
    from ml_filter.publishing.push_model import push_model as push

    print(push(head, repo, private=private, evaluations=evaluation or [], license=license))
