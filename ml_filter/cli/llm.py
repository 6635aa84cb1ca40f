"""More commands that ask an LLM: translate, label, and compare two prompts or models."""

from __future__ import annotations

from typing import Annotated, Any, cast

import typer

from ml_filter.cli.app import app
from ml_filter.cli.options import (
    AnnotateFile,
    AtBudget,
    BudgetTokens,
    BudgetUsd,
    ConfigFile,
    Endpoints,
    GoodFrom,
    IdColumn,
    MaxConcurrency,
    MaxFailedShare,
    Model,
    OneSource,
    Output,
    RetryFailed,
    Split,
    Subset,
    TextColumn,
    Timeout,
    Use,
    annotate_config,
    example,
    names_in,
    source_config,
    stage_config,
)
from ml_filter.cli.output import kept_when_stopped, show, show_comparison


@app.command(
    epilog=example(
        "ml-filter translate educational_value --to de,es --endpoint http://gpu1:8000/v1 --model "
        "meta-llama/Llama-3.3-70B-Instruct --output configs/prompts",
        "ml-filter translate gold.jsonl --to de --endpoint http://gpu1:8000/v1 --model "
        "meta-llama/Llama-3.3-70B-Instruct --output runs/gold",
    )
)
def translate(
    source: Annotated[
        str,
        typer.Argument(
            help="A prompt (name or YAML file), or documents: files, globs, directories, URLs, hf://datasets/OWNER/NAME"
        ),
    ],
    to: Annotated[str, typer.Option(metavar="LANG[,LANG]", help="Language codes, such as de, es or zh-Hant")],
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="Documents: gets a directory for each language. A prompt: gets NAME_LANG.yaml; or a .yaml file",
        ),
    ],
    endpoint: Endpoints = None,
    model: Model = None,
    max_concurrency: MaxConcurrency = None,
    timeout: Timeout = None,
    max_failed_share: MaxFailedShare = None,
    retry_failed: RetryFailed = None,
    budget_tokens: BudgetTokens = None,
    budget_usd: BudgetUsd = None,
    at_budget: AtBudget = None,
    config: ConfigFile = None,
    text_column: TextColumn = "text",
    id_column: IdColumn = None,
    split: Split = "train",
    subset: Subset = None,
) -> None:
    """Translate documents or a prompt through an LLM. Translations are checked; suspicious ones fail, with reason."""
    from ml_filter.annotation.config import TranslateConfig
    from ml_filter.annotation.translate import is_prompt, translate_documents, translate_prompt

    settings = stage_config(
        TranslateConfig,
        "translate",
        config,
        endpoints=endpoint,
        model=model,
        max_concurrency=max_concurrency,
        timeout_s=timeout,
        max_failed_share=max_failed_share,
        retry_failed=retry_failed,
        budget_tokens=budget_tokens,
        budget_usd=budget_usd,
        at_budget=at_budget,
    )
    languages = names_in(to) or [to]
    if is_prompt(source):
        for path in translate_prompt(source, languages, settings, output):
            print(f"in {path}")
        return
    documents = source_config([source], text_column, id_column, split, subset)
    with kept_when_stopped():
        manifests = translate_documents(documents, languages, settings, output)
    for made in manifests:
        show(made, settings.usd(made.counts["prompt_tokens"], made.counts["completion_tokens"]))


@app.command(
    epilog=example(
        "ml-filter label runs/sample --labels domain --labels use_case --by source,language --endpoint "
        "http://gpu1:8000/v1 --model meta-llama/Llama-3.3-70B-Instruct --output runs/labels",
        "ml-filter label 'corpus/*.jsonl.zst' --labels my_topics.yaml --output runs/topics",
    )
)
def label(
    docs: OneSource,
    output: Output,
    labels: Annotated[
        list[str] | None,
        typer.Option(
            help="Name of a list in configs/labels, or a YAML file; several facets: one --labels each (default: domain)"
        ),
    ] = None,
    by: Annotated[
        str, typer.Option(help="Columns, comma-separated, whose values the report tells apart (default: the files)")
    ] = "",
    endpoint: Endpoints = None,
    model: Model = None,
    max_concurrency: MaxConcurrency = None,
    timeout: Timeout = None,
    max_failed_share: MaxFailedShare = None,
    retry_failed: RetryFailed = None,
    budget_tokens: BudgetTokens = None,
    budget_usd: BudgetUsd = None,
    at_budget: AtBudget = None,
    config: ConfigFile = None,
    text_column: TextColumn = "text",
    id_column: IdColumn = None,
    split: Split = "train",
    subset: Subset = None,
) -> None:
    """Let an LLM label documents from lists with definitions, and report how the labels are distributed."""
    from ml_filter.annotation.config import LabelConfig
    from ml_filter.annotation.label import label_documents
    from ml_filter.annotation.label_report import REPORT_NAME

    settings = stage_config(
        LabelConfig,
        "label",
        config,
        labels=labels,
        by=names_in(by),
        endpoints=endpoint,
        model=model,
        max_concurrency=max_concurrency,
        timeout_s=timeout,
        max_failed_share=max_failed_share,
        retry_failed=retry_failed,
        budget_tokens=budget_tokens,
        budget_usd=budget_usd,
        at_budget=at_budget,
    )
    with kept_when_stopped():
        made = label_documents(source_config([docs], text_column, id_column, split, subset), settings, output)
    show(made, settings.usd(made.counts["prompt_tokens"], made.counts["completion_tokens"]))
    print(f"report in {made.path_of(REPORT_NAME)}")


@app.command(
    epilog=example(
        "ml-filter compare runs/sample --prompt educational_value --prompt my_prompt.yaml --output runs/prompts",
        "ml-filter compare gold.jsonl --prompt educational_value --model small --model large --endpoint "
        "http://gpu1:8000/v1 --endpoint http://gpu2:8000/v1 --gold-column human_score --output runs/models",
    )
)
def compare(
    docs: OneSource,
    output: Output,
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", help="Name or YAML file; given twice, the two are compared")
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option("--model", help="Model at the endpoint; given twice, the two are compared")
    ] = None,
    endpoint: Annotated[
        list[str] | None, typer.Option("--endpoint", help="Base URL; given twice, the first is for a, the second for b")
    ] = None,
    gold: Annotated[
        str | None, typer.Option(metavar="FILE", help="Human ratings (default: DOCS, where --gold-column is given)")
    ] = None,
    gold_column: Annotated[
        str | None, typer.Option(help="Column of gold that holds the rating (default: human_score)")
    ] = None,
    by: Annotated[str, typer.Option(help="Columns of gold, comma-separated; each of their values is a stratum")] = "",
    use: Use = "expected",
    threshold: GoodFrom = 3.0,
    examples: Annotated[int, typer.Option(min=1, help="Documents shown on which the two differ most")] = 20,
    max_concurrency: MaxConcurrency = None,
    timeout: Timeout = None,
    max_failed_share: MaxFailedShare = None,
    retry_failed: RetryFailed = None,
    budget_tokens: BudgetTokens = None,
    budget_usd: BudgetUsd = None,
    at_budget: AtBudget = None,
    config: AnnotateFile = None,
    text_column: TextColumn = "text",
    id_column: IdColumn = None,
    split: Split = "train",
    subset: Subset = None,
) -> None:
    """Let two prompts or models score the same documents: which is closer to gold, what it costs, where they differ."""
    from ml_filter.evaluation.compare import compare_annotators, two_sides
    from ml_filter.evaluation.config import CompareConfig

    common = annotate_config(
        config,
        max_concurrency=max_concurrency,
        timeout_s=timeout,
        max_failed_share=max_failed_share,
        retry_failed=retry_failed,
        budget_tokens=budget_tokens,
        budget_usd=budget_usd,
        at_budget=at_budget,
    )
    source = source_config([docs], text_column, id_column, split, subset)
    rated = source_config([gold or docs], text_column, id_column, split, subset) if gold or gold_column else None
    how = CompareConfig(
        gold=rated,
        gold_column=gold_column or "human_score",
        by=names_in(by),
        use=cast(Any, use),
        threshold=threshold,
        examples=examples,
    )
    a, b = two_sides(common, prompt or [], model or [], endpoint or [])
    with kept_when_stopped():
        comparison, manifest = compare_annotators(source, a, b, how, output)
    show_comparison(comparison, manifest.root)
