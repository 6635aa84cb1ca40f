"""Commands that estimate the cost of annotating, and annotate through batch files, which cost less."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ml_filter.annotation.config import AnnotateConfig, BatchConfig, EstimateConfig
from ml_filter.cli.app import app
from ml_filter.cli.command import FileSettings, Options, command
from ml_filter.cli.options import Docs, Output
from ml_filter.documents.config import SourceConfig
from ml_filter.pipeline.config import AnnotationPipelineConfig


@command(
    "ml-filter estimate --config configs/annotation.yaml",
    "ml-filter estimate runs/sample --config annotate.yaml --pilot 200 --output runs/annotations",
    "ml-filter annotate runs/sample --config annotate.yaml --output runs/annotations  # asks only for the rest",
)
def estimate(
    docs: Annotated[SourceConfig | None, Options("DOCS")],
    annotate: Annotated[AnnotateConfig, Options(beside=AnnotationPipelineConfig)],
    estimate: EstimateConfig,
    settings: FileSettings,
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="DIR", help="Directory that the annotations will go to")
    ] = None,
) -> None:
    """Estimate the requests, tokens, hours and money that annotating takes, from a pilot.

    The answers of the pilot are kept. Without DOCS, --config is the file of an annotation pipeline: the estimate covers
    every annotator on the sample and on the gold of the gates, and their sum.
    """
    from ml_filter.annotation.estimate import estimate_bill
    from ml_filter.cli.output import show_estimate, show_pipeline_bill
    from ml_filter.pipeline.bill import annotator_runs, estimate_pipeline

    runs = annotator_runs(settings, annotate, output=output) if docs is None else []
    if len(runs) > 1:
        show_pipeline_bill(estimate_pipeline(runs, estimate))
    else:
        source = docs or runs[0].source
        show_estimate(estimate_bill(source, annotate, estimate, output=output), output)


batch = typer.Typer(
    no_args_is_help=True,
    help="Annotate through OpenAI batch files, which cost less and take at most a day.",
)
app.add_typer(batch, name="batch")

Batch = Annotated[str, typer.Argument(metavar="BATCH", help="Directory made by ml-filter batch write")]


@command(
    "ml-filter batch write runs/sample --prompt educational_value --model gpt-5-mini --output runs/batch",
    "ml-filter batch write runs/sample --config annotate.yaml --output runs/batch",
    "python -m vllm.entrypoints.openai.run_batch -i runs/batch/requests-00000.jsonl -o results.jsonl --model NAME",
    group=batch,
)
def write(docs: Docs, output: Output, annotate: AnnotateConfig, batch: BatchConfig) -> None:
    """Write the requests of annotate as OpenAI batch files. Nothing is sent."""
    from ml_filter.annotation.batch import write_batch
    from ml_filter.cli.output import show

    show(write_batch(docs, annotate, batch, output))


@command("ml-filter batch submit runs/batch", group=batch)
def submit(
    batch: Batch,
    resubmit: Annotated[
        bool,
        typer.Option(
            "--resubmit",
            help="Submit again what a killed run may have submitted, and requests that failed, expired or cancelled "
            "batches left unanswered",
        ),
    ] = False,
) -> None:
    """Upload the files and start their batches, each once even if the command is killed and run again."""
    from ml_filter.annotation.batch import submit_batch
    from ml_filter.cli.output import show_submissions

    show_submissions(submit_batch(batch, resubmit=resubmit))


@command("ml-filter batch status runs/batch", "ml-filter batch status runs/batch --wait", group=batch)
def status(
    batch: Batch,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until all batches have ended")] = False,
    every: Annotated[float, typer.Option(min=0.1, metavar="X", help="Seconds between two requests of --wait")] = 60.0,
) -> None:
    """Show the status of the batches."""
    from ml_filter.annotation.batch import batch_status
    from ml_filter.cli.output import show_submissions

    show_submissions(batch_status(batch, wait=wait, every_s=every))


@command(
    "ml-filter batch collect runs/batch --output runs/annotations",
    "ml-filter batch collect runs/batch --results results.jsonl --output runs/annotations",
    "ml-filter annotate runs/sample --config annotate.yaml --output runs/annotations  # asks what is still open",
    group=batch,
)
def collect(
    batch: Batch,
    output: Output,
    results: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Results that you already have, such as those of run_batch; repeatable"),
    ] = None,
    max_failed_share: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            metavar="X",
            help="Share of failed answers above which the exit code is 1 (default: as set for batch write)",
        ),
    ] = None,
) -> None:
    """Add the answers to the ledger and write annotations, as annotate does."""
    from ml_filter.annotation.batch import batch_usd, collect_batch
    from ml_filter.cli.output import show

    manifest = collect_batch(batch, output, results=results or (), max_failed_share=max_failed_share)
    show(manifest, usd=batch_usd(batch, manifest))
