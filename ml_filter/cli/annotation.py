"""Commands that ask an LLM."""

from __future__ import annotations

from typing import Annotated

import typer

from ml_filter.cli.app import app
from ml_filter.cli.options import IdColumn, OneSource, Output, Split, Subset, TextColumn, example, source_config
from ml_filter.cli.output import show


@app.command(
    epilog=example(
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
    show(annotate_documents(source_config([docs], text_column, id_column, split, subset), config, output))
