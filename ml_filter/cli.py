"""The `ml-filter` command line. Every command calls one domain function and prints what it did."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.console import Console
from rich.table import Table

from ml_filter import __version__
from ml_filter.errors import MlFilterError

if TYPE_CHECKING:
    from ml_filter.documents.manifest import Manifest
    from ml_filter.heads.metrics import Evaluation
    from ml_filter.settings import SourceConfig, VoteMethod

app = typer.Typer(
    name="ml-filter",
    help="The quality filter for pretraining corpora: sample, annotate by LLM, train a head, score, keep the best.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_SOURCE_HELP = (
    "Files, globs, directories, URLs (Parquet, JSONL[.gz|.zst], WARC, WET), hf://datasets/OWNER/NAME, or installed: "
    "for the documents on this machine"
)
Sources = Annotated[list[str], typer.Argument(metavar="SOURCE...", help=_SOURCE_HELP, show_default=False)]
OneSource = Annotated[str, typer.Argument(help=_SOURCE_HELP, show_default=False)]
Output = Annotated[
    str, typer.Option("--output", "-o", metavar="DIR", help="Directory of the result; an unfinished one is finished")
]
TextColumn = Annotated[str, typer.Option(help="Column that holds the text")]
IdColumn = Annotated[str | None, typer.Option(help="Column that holds the id [default: id, else a hash of the text]")]
Split = Annotated[str, typer.Option(help="Split of a Hub data set")]
Subset = Annotated[str | None, typer.Option(help="Subset (configuration) of a Hub data set")]
LabelColumn = Annotated[str, typer.Option(help="Column that holds the label")]


def _example(*lines: str) -> str:
    return "[bold]Examples[/bold]\n\n" + "\n\n".join(f"$ {line}" for line in lines)


def _source(paths: list[str], text: str, id_column: str | None, split: str, subset: str | None) -> SourceConfig:
    from ml_filter.settings import SourceConfig

    return SourceConfig(paths=paths, text_column=text, id_column=id_column, split=split, subset=subset)


@app.callback(invoke_without_command=True)
def _start(
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log every failed document")] = False,
) -> None:
    from ml_filter.logs import configure_logging

    if version:
        print(f"ml-filter {__version__}")
        raise typer.Exit
    configure_logging(level="DEBUG" if verbose else "INFO")


@app.command(
    epilog=_example(
        "ml-filter sample installed: --size 500 --output runs/sample",
        "ml-filter sample 'crawl/*.warc.gz' --size 300000 --seed 1 --by language --output runs/sample",
    )
)
def sample(
    source: Sources,
    size: Annotated[int, typer.Option(min=1, help="How many documents")],
    output: Output,
    seed: Annotated[int, typer.Option(help="Another seed draws another sample")] = 0,
    by: Annotated[str, typer.Option(help="Columns, comma-separated, over whose values to spread the sample")] = "",
    text_column: TextColumn = "text",
    id_column: IdColumn = None,
    split: Split = "train",
    subset: Subset = None,
) -> None:
    """Draw a seeded sample of documents, in one pass over a corpus of any size."""
    from ml_filter.documents.sampling import sample_documents
    from ml_filter.settings import SampleConfig

    config = SampleConfig(size=size, seed=seed, by=[name.strip() for name in by.split(",") if name.strip()])
    _show(sample_documents(_source(source, text_column, id_column, split, subset), config, output))


@app.command(
    epilog=_example(
        "ml-filter annotate runs/sample --prompt educational_value_small --output runs/annotations",
        "ml-filter annotate runs/sample --prompt educational_value --endpoint http://gpu1:8000/v1 "
        "--model meta-llama/Llama-3.3-70B-Instruct --votes 3 --temperature 0.7 --output runs/annotations",
    )
)
def annotate(
    docs: OneSource,
    prompt: Annotated[str, typer.Option(help="Name of a prompt in configs/prompts, or a YAML file")],
    output: Output,
    endpoint: Annotated[
        str | None,
        typer.Option(help="OpenAI-compatible base URL [default: ML_FILTER_ENDPOINT, else the embedded judge]"),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Model at the endpoint [default: ML_FILTER_MODEL]")] = None,
    votes: Annotated[int, typer.Option(min=1, help="Answers per document; more than one needs a temperature")] = 1,
    temperature: Annotated[float, typer.Option(min=0)] = 0.0,
    seed: Annotated[int, typer.Option(help="Vote k is sampled with seed + k")] = 0,
    max_concurrency: Annotated[int, typer.Option(min=1, help="Requests in flight")] = 64,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for an answer")] = 120.0,
    max_failed_share: Annotated[float, typer.Option(min=0, max=1, help="Above it the exit code is 1")] = 0.05,
    budget_tokens: Annotated[int | None, typer.Option(min=1, help="Start no request once so many are used")] = None,
    text_column: TextColumn = "text",
    id_column: IdColumn = None,
    split: Split = "train",
    subset: Subset = None,
) -> None:
    """Let an LLM score documents against a prompt. Every answer is on disk at once; a rerun asks only for the rest."""
    from ml_filter.annotation.annotate import annotate_documents
    from ml_filter.settings import AnnotateConfig

    config = AnnotateConfig(
        prompt=prompt,
        endpoint=endpoint,
        model=model,
        votes=votes,
        temperature=temperature,
        seed=seed,
        max_concurrency=max_concurrency,
        timeout_s=timeout,
        max_failed_share=max_failed_share,
        budget_tokens=budget_tokens,
    )
    _show(annotate_documents(_source([docs], text_column, id_column, split, subset), config, output))


@app.command(epilog=_example("ml-filter aggregate runs/annotations --method mean --output runs/scores"))
def aggregate(
    annotations: Annotated[list[Path], typer.Argument(metavar="ANNOTATIONS...", help="Directories made by annotate")],
    output: Output,
    method: Annotated[str, typer.Option(help="mean, median, majority (ties averaged), min or max")] = "mean",
    use: Annotated[
        str, typer.Option(help="expected: from log-probabilities where there are any; answer: the parsed answer")
    ] = "expected",
) -> None:
    """Combine the votes on each document into one score. Failed votes are counted, never averaged in."""
    from ml_filter.agreement.aggregate import aggregate_annotations
    from ml_filter.settings import AggregateConfig

    config = AggregateConfig(method=cast("VoteMethod", method), use=cast(Any, use))
    _show(aggregate_annotations(annotations, config, output))


@app.command(
    epilog=_example(
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
        str | None, typer.Option(help="Hub name or directory [default: all-MiniLM-L6-v2, which is installed]")
    ] = None,
    documents: Annotated[
        str | None, typer.Option(help="Documents of aggregated scores [default: those that were annotated]")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="YAML with any setting of the training; options go before it")
    ] = None,
    score_min: Annotated[float | None, typer.Option(help="Lowest label [default: 0]")] = None,
    score_max: Annotated[float | None, typer.Option(help="Highest label [default: 5]")] = None,
    seed: Annotated[int | None, typer.Option(help="Draws the test documents [default: 0]")] = None,
    text_column: TextColumn = "text",
    id_column: IdColumn = None,
    split: Split = "train",
    subset: Subset = None,
) -> None:
    """Fit a regression head on a frozen encoder and evaluate it on documents kept apart."""
    from ml_filter.heads.train import train_head
    from ml_filter.settings import SourceConfig, TrainConfig, read_yaml

    given = {"encoder": encoder, "score_min": score_min, "score_max": score_max, "seed": seed}
    settings = TrainConfig.model_validate(
        {
            **(read_yaml(config) if config else {}),
            "label_column": label_column,
            **{name: value for name, value in given.items() if value is not None},
        }
    )
    source = _source([labels], text_column, id_column, split, subset)
    head = train_head(source, settings, output, SourceConfig(paths=[documents]) if documents else None)
    result = head.training
    counts = {
        "trained on": result.train_documents,
        "tested on": result.test_documents,
        "without label": result.unlabelled,
    }
    _table("head", head.directory, counts, _figures(result.evaluation))


@app.command(
    epilog=_example("ml-filter evaluate runs/head gold.jsonl --label-column human_score --output runs/evaluation")
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

    source = _source([gold], text_column, id_column, split, subset)
    evaluation, manifest = evaluate_head(model_dir, source, label_column, output)
    _table("evaluation", output, manifest.counts, _figures(evaluation))


@app.command(
    epilog=_example(
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
    _show(score_corpus(model_dir, _source(source, text_column, id_column, split, subset), config, output))


@app.command("filter", epilog=_example("ml-filter filter runs/scored --min-score 3 --output runs/filtered"))
def filter_(
    scored: OneSource,
    output: Output,
    min_score: Annotated[float, typer.Option(help="Keep documents with at least this score")],
) -> None:
    """Keep the documents whose score reaches a minimum."""
    from ml_filter.selection.select import filter_corpus
    from ml_filter.settings import FilterConfig, SourceConfig

    _show(filter_corpus(SourceConfig(paths=[scored]), FilterConfig(min_score=min_score), output))


def _figures(evaluation: Evaluation) -> dict[str, float]:
    figures = evaluation.figures()
    del figures["documents"], figures["threshold"]
    return {name: value for name, value in figures.items() if not name.startswith("f1_class")}


def _show(manifest: Manifest) -> None:
    _table(manifest.kind, manifest.root, manifest.counts)


def _table(title: str, path: str, counts: Mapping[str, int], figures: Mapping[str, float] | None = None) -> None:
    table = Table(title=title, title_justify="left", show_header=False, box=None)
    table.add_column(style="dim")
    table.add_column(justify="right")
    for name, count in counts.items():
        table.add_row(name.replace("_", " "), f"{count:,}")
    for name, value in (figures or {}).items():
        table.add_row(name.replace("_", " "), f"{value:.3f}")
    console = Console()
    console.print(table)
    console.print(f"in {path}", soft_wrap=True, highlight=False)


def main() -> None:
    """Run the command line; errors end it with their reason and exit code (docs: 0 done, 1 failures, 2 bad input)."""
    from pydantic import ValidationError

    from ml_filter.settings import problems_in

    try:
        app()
    except MlFilterError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except ValidationError as error:
        print(f"error: {problems_in(error, error.title)}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
