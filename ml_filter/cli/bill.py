"""What annotating costs before it starts, and annotating through batch files, which cost less."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ml_filter.cli.app import app
from ml_filter.cli.options import (
    AnnotateFile,
    Endpoints,
    IdColumn,
    MaxConcurrency,
    Model,
    OneSource,
    Output,
    Prompts,
    Split,
    Subset,
    TextColumn,
    annotate_config,
    example,
    file_settings,
    options_given,
    source_config,
    stage_config,
)


@app.command(
    epilog=example(
        "ml-filter estimate --config configs/annotation.yaml",
        "ml-filter estimate runs/sample --config annotate.yaml --pilot 200 --output runs/annotations",
        "ml-filter annotate runs/sample --config annotate.yaml --output runs/annotations  # asks only for the rest",
    )
)
def estimate(
    docs: Annotated[
        str | None, typer.Argument(help="What is to be annotated (default: source and sample of --config)")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", metavar="FILE", help="YAML of the annotation pipeline, or with settings of annotate"),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="DIR", help="Directory that the annotations will go to"),
    ] = None,
    pilot: Annotated[int | None, typer.Option(min=1, help="Documents to ask about (default: 50)")] = None,
    pilot_seed: Annotated[int | None, typer.Option(min=0, help="Another seed draws another pilot")] = None,
    prompt: Prompts = None,
    endpoint: Endpoints = None,
    model: Model = None,
    max_concurrency: MaxConcurrency = None,
    text_column: TextColumn = "text",
    id_column: IdColumn = None,
    split: Split = "train",
    subset: Subset = None,
) -> None:
    """Say what annotating would take, in requests, tokens, hours and money, from a pilot. Its answers are kept.

    Of a pipeline with a jury or a gate: every annotator over the sample and over the gate's gold, and the sum.
    """
    from ml_filter.annotation.config import AnnotateConfig, EstimateConfig
    from ml_filter.annotation.estimate import estimate_bill
    from ml_filter.cli.output import show_estimate, show_pipeline_bill
    from ml_filter.pipeline.bill import annotator_runs, estimate_pipeline
    from ml_filter.pipeline.config import AnnotationPipelineConfig

    annotate = stage_config(
        AnnotateConfig,
        "annotate",
        config,
        beside=tuple(AnnotationPipelineConfig.model_fields),
        prompts=prompt,
        endpoints=endpoint,
        model=model,
        max_concurrency=max_concurrency,
    )
    settings = EstimateConfig.model_validate(options_given(pilot=pilot, seed=pilot_seed))
    if docs is not None:
        source = source_config([docs], text_column, id_column, split, subset)
        show_estimate(estimate_bill(source, annotate, settings, output=output), output)
        return
    runs = annotator_runs(file_settings(config), annotate, output=output)
    if len(runs) == 1:
        show_estimate(estimate_bill(runs[0].source, annotate, settings, output=output), output)
    else:
        show_pipeline_bill(estimate_pipeline(runs, settings))


batch = typer.Typer(
    no_args_is_help=True,
    help="Annotate through OpenAI batch files: write, submit, status, collect. Cheaper than one by one, within a day.",
)
app.add_typer(batch, name="batch")

Batch = Annotated[str, typer.Argument(metavar="BATCH", help="Directory that ml-filter batch write made")]


@batch.command(
    epilog=example(
        "ml-filter batch write runs/sample --prompt educational_value --model gpt-5-mini --output runs/batch",
        "ml-filter batch write runs/sample --config annotate.yaml --output runs/batch",
        "python -m vllm.entrypoints.openai.run_batch -i runs/batch/requests-00000.jsonl -o results.jsonl --model NAME",
    )
)
def write(
    docs: OneSource,
    output: Output,
    prompt: Prompts = None,
    model: Model = None,
    endpoint: Endpoints = None,
    ledger: Annotated[
        str | None, typer.Option(help="SQLite file of answers; what it holds is not asked (default: all is asked)")
    ] = None,
    config: AnnotateFile = None,
    max_requests: Annotated[int | None, typer.Option(min=1, help="Requests in a file (default: 50,000)")] = None,
    max_bytes: Annotated[int | None, typer.Option(min=1, help="Bytes of a file (default: 200,000,000)")] = None,
    price_share: Annotated[
        float | None, typer.Option(min=0, help="Batch price as a share of the prices in --config (default: 0.5)")
    ] = None,
    text_column: TextColumn = "text",
    id_column: IdColumn = None,
    split: Split = "train",
    subset: Subset = None,
) -> None:
    """Write the requests that annotate would make as OpenAI batch files. Nothing is sent."""
    from ml_filter.annotation.batch import write_batch
    from ml_filter.annotation.config import BatchConfig
    from ml_filter.cli.output import show

    annotate = annotate_config(config, prompts=prompt, endpoints=endpoint, model=model, ledger=ledger)
    given = options_given(max_requests=max_requests, max_bytes=max_bytes, price_share=price_share)
    limits = BatchConfig.model_validate(given)
    show(write_batch(source_config([docs], text_column, id_column, split, subset), annotate, limits, output))


@batch.command(epilog=example("ml-filter batch submit runs/batch"))
def submit(
    batch: Batch,
    resubmit: Annotated[
        bool,
        typer.Option(
            "--resubmit",
            help="Submit again what may have been submitted before a kill, and what failed, expired or cancelled "
            "batches left unanswered",
        ),
    ] = False,
) -> None:
    """Upload the files and start their batches, each once, also when killed and called again."""
    from ml_filter.annotation.batch import submit_batch
    from ml_filter.cli.output import show_submissions

    show_submissions(submit_batch(batch, resubmit=resubmit))


@batch.command(epilog=example("ml-filter batch status runs/batch", "ml-filter batch status runs/batch --wait"))
def status(
    batch: Batch,
    wait: Annotated[bool, typer.Option("--wait", help="Ask again until all batches have ended")] = False,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two times")] = 60.0,
) -> None:
    """Say how far the batches are."""
    from ml_filter.annotation.batch import batch_status
    from ml_filter.cli.output import show_submissions

    show_submissions(batch_status(batch, wait=wait, every_s=every))


@batch.command(
    epilog=example(
        "ml-filter batch collect runs/batch --output runs/annotations",
        "ml-filter batch collect runs/batch --results results.jsonl --output runs/annotations",
        "ml-filter annotate runs/sample --config annotate.yaml --output runs/annotations  # asks what is still open",
    )
)
def collect(
    batch: Batch,
    output: Output,
    results: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Results that are here already, such as run_batch's (default: fetch them)"),
    ] = None,
    max_failed_share: Annotated[
        float | None, typer.Option(min=0, max=1, help="Above it the exit code is 1 (default: that of write's --config)")
    ] = None,
) -> None:
    """Put the answers into the ledger and write annotations, as annotate does."""
    from ml_filter.annotation.batch import batch_usd, collect_batch
    from ml_filter.cli.output import show

    made = collect_batch(batch, output, results=results or (), max_failed_share=max_failed_share)
    show(made, batch_usd(batch, made))
