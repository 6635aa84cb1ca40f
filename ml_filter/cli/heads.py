"""Commands that train, evaluate and publish heads, and apply them to a corpus."""

from __future__ import annotations

from typing import Annotated

import typer

from ml_filter.cli.command import Documents, Head, Labels, Options, Output, Sources, command
from ml_filter.cli.output import show, show_cascade, show_evaluation, show_head, show_search, show_selection
from ml_filter.documents.config import SourceConfig
from ml_filter.heads.config import SearchConfig, TrainConfig
from ml_filter.scoring.config import CascadeConfig, ScoreConfig
from ml_filter.selection.config import FilterConfig
from ml_filter.serving.config import ServeConfig


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
        list[str] | None,
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
    from ml_filter.publishing.push import push_model as push

    print(push(head, repo, private=private, evaluations=evaluation or [], license=license))


@command(
    "ml-filter score runs/head 'corpus/*.parquet' --output runs/scored",
    "ml-filter score runs/head crawl.warc.gz pages.jsonl.zst --workers 4 --output runs/scored",
    "ml-filter score runs/head s3://bucket/corpus --ray auto --workers 64 --worker-gpus 1 --output s3://bucket/scored",
    "srun ml-filter score runs/head /shared/corpus --rank auto --output /shared/scored",
)
def score(
    head: Head,
    source: Sources,
    output: Output,
    score: ScoreConfig,
    rank: Annotated[
        str | None,
        typer.Option(
            metavar="N",
            help="Score only the shards of this rank, from 0, or auto: as set by srun or torchrun. The other options "
            "must be the same for all ranks",
        ),
    ] = None,
    world_size: Annotated[int | None, typer.Option(min=1, metavar="N", help="Number of ranks")] = None,
) -> None:
    """Score a corpus shard by shard to Parquet with the columns score, int_score and score_status.

    Run the command again to resume.
    """
    from ml_filter.scoring.run import find_rank, score_corpus, score_rank

    if rank is None:
        show(score_corpus(head, source, score, output))
    elif (manifest := score_rank(head, source, score, output, find_rank(rank, world_size))) is not None:
        show(manifest)
    else:
        print(f"the shards of this rank are done; the last rank to finish completes {output}")


@command(
    "ml-filter cascade runs/head 'corpus/*.parquet' --output runs/cascade",
    "ml-filter score runs/cascade 'corpus/*.parquet' --output runs/scored",
)
def cascade(
    head: Head,
    source: Sources,
    output: Output,
    cascade: CascadeConfig,
    score: Annotated[ScoreConfig, Options(only=("device", "dtype"))],
) -> None:
    """Add a fast first-stage model to a head. It decides the clear cases; the share of changed decisions is bounded."""
    from ml_filter.scoring.cascade import build_cascade

    show_cascade(build_cascade(head, source, cascade, score, output))


@command(
    "ml-filter filter runs/scored --min-score 3 --output runs/filtered",
    "ml-filter filter runs/scored --keep-fraction 0.1 --criterion educational --where 'adult<=1' "
    "--output runs/filtered",
    "ml-filter filter runs/scored --token-budget 10_000_000_000 --tokenizer gpt2 --quota language "
    "--output runs/filtered",
    "ml-filter filter runs/scored --token-budget 10_000_000_000 --token-column token_count --quota language "
    "--quota-share eng_Latn=0.7 --quota-share deu_Latn=0.3 --dropped --output runs/filtered",
    "ml-filter filter runs/scored --keep-fraction 0.2 --weighted --temperature 2 --seed 1 --output runs/filtered",
    name="filter",
)
def filter_(
    scored: Annotated[str, typer.Argument(metavar="SCORED", help="Directory made by score, or any scored documents")],
    output: Output,
    filter: FilterConfig,
) -> None:
    """Keep the best documents by minimum score, fraction or token budget."""
    from ml_filter.selection.select import filter_corpus

    manifest = filter_corpus(SourceConfig(paths=[scored]), filter, output)
    show_selection(manifest)
    show(manifest)


@command(
    "ml-filter report runs/filtered",
    "ml-filter report moved/filtered --scored moved/scored --head moved/head --usd-per-worker-hour 0.9",
)
def report(
    filtered: Annotated[str, typer.Argument(metavar="FILTERED", help="Directory made by filter")],
    scored: Annotated[
        str | None, typer.Option(metavar="DIR", help="Scored documents it was selected from (default: as recorded)")
    ] = None,
    head: Annotated[
        str | None, typer.Option(metavar="HEAD", help="Head that scored them (default: as recorded)")
    ] = None,
    usd_per_worker_hour: Annotated[
        float | None, typer.Option(min=0, metavar="X", help="Price of one worker hour, to report what scoring cost")
    ] = None,
) -> None:
    """Write report.html, report.json and DATASHEET.md beside filtered documents."""
    from ml_filter.reporting.run import report_filtered

    path, _, _ = report_filtered(filtered, scored, head, usd_per_worker_hour)
    print(f"in {path}")


@command(
    "ml-filter serve runs/head",
    "ml-filter serve runs/head --host 0.0.0.0 --port 9000 --max-batch 128 --max-wait-ms 10",
    'curl localhost:8000/score -H "content-type: application/json" -d \'{"text": "Cells divide by mitosis."}\'',
)
def serve(head: Head, serve: ServeConfig) -> None:
    """Score documents over HTTP: POST /score, GET /health, /info and /metrics. SIGTERM stops the server."""
    from ml_filter.serving.server import serve_head

    serve_head(head, serve, lambda line: print(line, flush=True))
