"""Commands that ask an LLM."""

from __future__ import annotations

from typing import Annotated

import typer

from ml_filter.annotation.config import AnnotateConfig, LabelConfig, TranslateConfig
from ml_filter.cli.command import Options, command
from ml_filter.cli.options import Docs, Output
from ml_filter.cli.output import keep_answers, show, show_comparison
from ml_filter.documents.config import SourceConfig
from ml_filter.evaluation.config import CompareConfig


@command(
    "ml-filter annotate runs/sample --prompt educational_value_small --output runs/annotations",
    "ml-filter annotate runs/sample --prompt educational_value --prompt adult_content --endpoint "
    "http://gpu1:8000/v1 --endpoint http://gpu2:8000/v1 --model meta-llama/Llama-3.3-70B-Instruct --votes 3 "
    "--temperature 0.7 --tokenizer server --output runs/annotations",
    "ml-filter annotate runs/sample --config annotate.yaml --retry-failed --output runs/annotations",
)
def annotate(docs: Docs, output: Output, annotate: AnnotateConfig) -> None:
    """Let an LLM score documents against prompts.

    Every answer is written to disk at once; run the command again to resume.
    """
    from ml_filter.annotation.annotate import annotate_documents

    with keep_answers():
        manifest = annotate_documents(docs, annotate, output)
    show(manifest, annotate)


@command(
    "ml-filter translate educational_value --to de,es --endpoint http://gpu1:8000/v1 --model "
    "meta-llama/Llama-3.3-70B-Instruct --output configs/prompts",
    "ml-filter translate gold.jsonl --to de --endpoint http://gpu1:8000/v1 --model "
    "meta-llama/Llama-3.3-70B-Instruct --output runs/gold",
)
def translate(
    source: Annotated[SourceConfig, Options("SOURCE")],
    to: Annotated[list[str], typer.Option(metavar="LANGUAGE", help="Codes such as de, es or zh-Hant; repeatable")],
    output: Output,
    translate: TranslateConfig,
) -> None:
    """Translate documents or a prompt with an LLM.

    SOURCE is a source of documents, or a prompt: its name or a YAML file. Each language of documents gets a directory
    below --output, each language of a prompt a file NAME_LANGUAGE.yaml. Translations are checked; suspicious ones fail
    with a reason.
    """
    from ml_filter.annotation.translate import is_prompt, translate_documents, translate_prompt

    languages = [language.strip() for listed in to for language in listed.split(",") if language.strip()] or to
    if is_prompt(source.paths[0]):
        for path in translate_prompt(source.paths[0], languages, translate, output):
            print(f"in {path}")
        return
    with keep_answers():
        manifests = translate_documents(source, languages, translate, output)
    for manifest in manifests:
        show(manifest, translate)


@command(
    "ml-filter label runs/sample --labels domain --labels use_case --by source,language --endpoint "
    "http://gpu1:8000/v1 --model meta-llama/Llama-3.3-70B-Instruct --output runs/labels",
    "ml-filter label 'corpus/*.jsonl.zst' --labels my_topics.yaml --output runs/topics",
)
def label(docs: Docs, output: Output, label: LabelConfig) -> None:
    """Let an LLM label documents from lists of defined labels, and report the distribution of the labels."""
    from ml_filter.annotation.label import REPORT_NAME, label_documents

    with keep_answers():
        manifest = label_documents(docs, label, output)
    show(manifest, label)
    print(f"report in {manifest.path_of(REPORT_NAME)}")


@command(
    "ml-filter compare runs/sample --prompt educational_value --prompt my_prompt.yaml --output runs/prompts",
    "ml-filter compare gold.jsonl --prompt educational_value --model small --model large --endpoint "
    "http://gpu1:8000/v1 --endpoint http://gpu2:8000/v1 --gold-column human_score --output runs/models",
)
def compare(
    docs: Docs,
    output: Output,
    annotate: Annotated[AnnotateConfig, Options(skip=("prompts", "endpoints", "model"))],
    compare: Annotated[CompareConfig, Options(only=("by", "use", "threshold", "examples"))],
    prompt: Annotated[
        list[str] | None, typer.Option(metavar="PROMPT", help="Name or YAML file; give it twice to compare two prompts")
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Model at the endpoint; give it twice to compare two models"),
    ] = None,
    endpoint: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="Base URL; given twice, the first is for a, the second for b"),
    ] = None,
    gold: Annotated[
        str | None, typer.Option(metavar="FILE", help="Human ratings (default: DOCS if --gold-column is given)")
    ] = None,
    gold_column: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Column of gold with the rating (default: human_score)")
    ] = None,
) -> None:
    """Let two prompts or models score the same documents.

    The result says which is closer to gold, what each costs, and where they differ.
    """
    from ml_filter.evaluation.compare import compare_annotators, two_sides

    if gold or gold_column:
        rated = docs.model_copy(update={"paths": [gold]}) if gold else docs
        compare = compare.model_copy(update={"gold": rated, "gold_column": gold_column or compare.gold_column})
    a, b = two_sides(annotate, prompt or [], model or [], endpoint or [])
    with keep_answers():
        comparison, manifest = compare_annotators(docs, a, b, compare, output)
    show_comparison(comparison, manifest.root)
