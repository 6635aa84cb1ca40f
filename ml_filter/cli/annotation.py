"""Commands that ask an LLM."""

from __future__ import annotations

from typing import Annotated

import typer

from ml_filter.cli.app import app
from ml_filter.cli.options import (
    AnnotateFile,
    AtBudget,
    BudgetTokens,
    BudgetUsd,
    Endpoints,
    IdColumn,
    MaxConcurrency,
    MaxFailedShare,
    Model,
    OneSource,
    Output,
    Prompts,
    RetryFailed,
    Split,
    Subset,
    TextColumn,
    Timeout,
    annotate_config,
    example,
    source_config,
)
from ml_filter.cli.output import kept_when_stopped, show


@app.command(
    epilog=example(
        "ml-filter annotate runs/sample --prompt educational_value_small --output runs/annotations",
        "ml-filter annotate runs/sample --prompt educational_value --prompt adult_content --endpoint "
        "http://gpu1:8000/v1 --endpoint http://gpu2:8000/v1 --model meta-llama/Llama-3.3-70B-Instruct --votes 3 "
        "--temperature 0.7 --tokenizer server --output runs/annotations",
        "ml-filter annotate runs/sample --config annotate.yaml --retry-failed --output runs/annotations",
    )
)
def annotate(
    docs: OneSource,
    output: Output,
    prompt: Prompts = None,
    endpoint: Endpoints = None,
    model: Model = None,
    votes: Annotated[
        int | None, typer.Option(min=1, help="Answers per document; more than one needs a temperature (default: 1)")
    ] = None,
    temperature: Annotated[float | None, typer.Option(min=0, help="(default: 0)")] = None,
    seed: Annotated[int | None, typer.Option(help="Vote k is sampled with seed + k (default: 0)")] = None,
    structured: Annotated[
        str | None, typer.Option(help="auto, on or off: constrain answers where the prompt's mode can (default: auto)")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="Cut by tokens: Hub name or directory, or server (default: cut by characters)")
    ] = None,
    context_tokens: Annotated[
        int | None, typer.Option(min=1, help="The model's context (default: what the endpoint says)")
    ] = None,
    long_documents: Annotated[
        str | None, typer.Option(help="truncate, or windows: score pieces and combine them (default: truncate)")
    ] = None,
    max_concurrency: MaxConcurrency = None,
    timeout: Timeout = None,
    max_outage: Annotated[
        float | None, typer.Option(help="Seconds to wait for an endpoint that has stopped answering (default: 600)")
    ] = None,
    max_failed_share: MaxFailedShare = None,
    retry_failed: RetryFailed = None,
    budget_tokens: BudgetTokens = None,
    budget_usd: BudgetUsd = None,
    at_budget: AtBudget = None,
    ledger: Annotated[
        str | None, typer.Option(help="SQLite file of answers, shared between outputs (default: in the output)")
    ] = None,
    config: AnnotateFile = None,
    text_column: TextColumn = "text",
    id_column: IdColumn = None,
    split: Split = "train",
    subset: Subset = None,
) -> None:
    """Let an LLM score documents against prompts. Every answer is on disk at once; a rerun asks only for the rest."""
    from ml_filter.annotation.annotate import annotate_documents

    settings = annotate_config(
        config,
        prompts=prompt,
        endpoints=endpoint,
        model=model,
        votes=votes,
        temperature=temperature,
        seed=seed,
        structured=structured,
        tokenizer=tokenizer,
        context_tokens=context_tokens,
        long_documents=long_documents,
        max_concurrency=max_concurrency,
        timeout_s=timeout,
        max_outage_s=max_outage,
        max_failed_share=max_failed_share,
        retry_failed=retry_failed,
        budget_tokens=budget_tokens,
        budget_usd=budget_usd,
        at_budget=at_budget,
        ledger=ledger,
    )
    with kept_when_stopped():
        made = annotate_documents(source_config([docs], text_column, id_column, split, subset), settings, output)
    show(made, settings.usd(made.counts["prompt_tokens"], made.counts["completion_tokens"]))
