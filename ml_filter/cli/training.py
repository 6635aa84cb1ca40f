"""Commands on heads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ml_filter.cli.app import app
from ml_filter.cli.options import (
    ConfigFile,
    Documents,
    Head,
    IdColumn,
    LabelColumn,
    OneSource,
    Output,
    ScoreRange,
    Split,
    Subset,
    TextColumn,
    example,
    file_settings,
    options_given,
    settings_in,
    source_config,
    stage_config,
)
from ml_filter.cli.output import figures_of, show_evaluation, show_search, show_table

LabelColumns = Annotated[
    list[str] | None, typer.Option(help="Column of the labels; several: several criteria (default: score)")
]
Encoder = Annotated[
    str | None, typer.Option(help="Hub name or directory (default: all-MiniLM-L6-v2, which is installed)")
]
Criteria = Annotated[
    list[str] | None, typer.Option(help="Which criteria of aggregated scores (default: all there are)")
]
TestSeed = Annotated[int | None, typer.Option(min=0, help="Draws the test documents (default: 0)")]


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
    label_column: LabelColumns = None,
    engine: Annotated[str | None, typer.Option(help="encoder, hashing, static or stack (default: encoder)")] = None,
    encoder: Encoder = None,
    criterion: Criteria = None,
    documents: Documents = None,
    config: ConfigFile = None,
    score_range: ScoreRange = None,
    seed: TestSeed = None,
    text_column: TextColumn = "text",
    id_column: IdColumn = None,
    split: Split = "train",
    subset: Subset = None,
) -> None:
    """Fit a head to labels (on an encoder, on hashed words, or on both) and evaluate it on documents kept apart."""
    from ml_filter.documents.config import SourceConfig
    from ml_filter.heads.config import TrainConfig
    from ml_filter.heads.train import train_head

    settings = stage_config(
        TrainConfig,
        "train",
        config,
        label_column=label_column,
        engine=engine,
        encoder=encoder,
        criterion=criterion,
        score_range=score_range,
        seed=seed,
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
        "ml-filter search labelled.jsonl --label-column llama3_70b_score --trials 60 --output runs/search",
        "ml-filter search runs/scores --metric macro_f1_at_threshold --engine encoder --engine hashing "
        "--output runs/search",
        "ml-filter train labelled.jsonl --config runs/search/best.yaml --output runs/head",
    )
)
def search(
    labels: OneSource,
    output: Output,
    trials: Annotated[int | None, typer.Option(min=1, help="How many settings are tried (default: 40)")] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            help="spearman, pearson, kappa_quadratic, exact_agreement, macro_f1, agreement_at_threshold, "
            "f1_at_threshold or macro_f1_at_threshold (default: spearman)"
        ),
    ] = None,
    label_column: LabelColumns = None,
    engine: Annotated[
        list[str] | None, typer.Option(help="Only this engine; several: only these (default: all four)")
    ] = None,
    encoder: Encoder = None,
    criterion: Criteria = None,
    documents: Documents = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="YAML with train, space, trials and any setting of the search; options go before it"
        ),
    ] = None,
    score_range: ScoreRange = None,
    seed: TestSeed = None,
    text_column: TextColumn = "text",
    id_column: IdColumn = None,
    split: Split = "train",
    subset: Subset = None,
) -> None:
    """Try settings of a head by cross-validation on the training documents; the best go into best.yaml, for train."""
    from ml_filter.documents.config import SourceConfig
    from ml_filter.heads.config import SearchConfig
    from ml_filter.heads.search import search_head

    content = file_settings(config)
    fixed = options_given(
        label_column=label_column,
        encoder=encoder,
        criterion=criterion,
        score_range=score_range,
        seed=seed,
    )
    train = {**settings_in(content, "train", config), **fixed}
    if engine:
        content["space"] = {**settings_in(content, "space", config), "engine": engine}
        train["engine"] = train.get("engine") if train.get("engine") in engine else engine[0]
    settings = SearchConfig.model_validate({**content, **options_given(trials=trials, metric=metric), "train": train})
    source = source_config([labels], text_column, id_column, split, subset)
    show_search(*search_head(source, settings, output, SourceConfig(paths=[documents]) if documents else None))


@app.command(
    epilog=example(
        "ml-filter evaluate runs/head gold.jsonl --label-column human_score --output runs/evaluation",
        "ml-filter evaluate runs/new gold.jsonl --label-column human_score --compare hf://OWNER/NAME@v1 "
        "--output runs/comparison",
    )
)
def evaluate(
    head: Head,
    gold: OneSource,
    label_column: LabelColumn,
    output: Output,
    compare: Annotated[
        str | None, typer.Option(metavar="HEAD", help="Another head, such as the current one, on the same documents")
    ] = None,
    criterion: Annotated[str | None, typer.Option(help="Which criterion of the head (default: its only one)")] = None,
    text_column: TextColumn = "text",
    id_column: IdColumn = None,
    split: Split = "train",
    subset: Subset = None,
) -> None:
    """Compare a head's scores with labels: figures with intervals, a page with plots, and each document's score."""
    from ml_filter.evaluation.evaluate import evaluate_head

    source = source_config([gold], text_column, id_column, split, subset)
    evaluation, manifest = evaluate_head(head, source, label_column, output, compare, criterion)
    show_evaluation(evaluation, manifest)


@app.command(
    epilog=example(
        "ml-filter push-model runs/head --repo OWNER/NAME --evaluation runs/evaluation --license apache-2.0 --private"
    )
)
def push_model(
    head: Head,
    repo: Annotated[str, typer.Option(metavar="OWNER/NAME", help="Repository on the Hub; made where there is none")],
    evaluation: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="Directory made by evaluate, for the model card; several: one each"),
    ] = None,
    license: Annotated[str, typer.Option(help="Identifier for the model card, such as apache-2.0")] = "unknown",
    private: Annotated[bool, typer.Option("--private", help="Make it private; a public repository is refused")] = False,
) -> None:
    """Upload a head to the Hugging Face Hub, with a model card that is filled from its training and evaluations."""
    from ml_filter.publishing.push_model import push_model as push

    print(push(head, repo, private=private, evaluations=evaluation or [], license=license))
