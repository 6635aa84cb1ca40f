"""Commands that make labelled documents: prepare, annotate, combine scores, measure agreement and publish."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from ml_filter.agreement.config import AggregateConfig, AgreementConfig, RankConfig
from ml_filter.annotation.config import AnnotateConfig, BatchConfig, EstimateConfig, LabelConfig, TranslateConfig
from ml_filter.cli.command import Docs, Documents, FileSettings, Options, Output, Sources, app, command
from ml_filter.cli.output import (
    keep_answers,
    show,
    show_agreement,
    show_comparison,
    show_estimate,
    show_pipeline_bill,
    show_reliability,
    show_submissions,
    show_table,
)
from ml_filter.documents.config import ConvertConfig, SourceConfig
from ml_filter.evaluation.config import CompareConfig
from ml_filter.location import Location
from ml_filter.pipeline.config import AnnotationPipelineConfig
from ml_filter.prepare.config import DecontaminateConfig, DeduplicateConfig, SampleConfig
from ml_filter.publishing.config import PublishConfig


@command(
    "ml-filter sample installed: --size 500 --output runs/sample",
    "ml-filter sample 'crawl/*.warc.gz' --size 300000 --seed 1 --by language --output runs/sample",
)
def sample(source: Sources, output: Output, sample: SampleConfig) -> None:
    """Draw a random sample of documents in one pass over a corpus of any size."""
    from ml_filter.prepare.sampling import sample_documents

    show(sample_documents(source, sample, output))


@command(
    "ml-filter deduplicate runs/sample --output runs/deduplicated",
    "ml-filter deduplicate 'crawl/*.parquet' --threshold 0.7 --output runs/deduplicated",
)
def deduplicate(source: Sources, output: Output, deduplicate: DeduplicateConfig) -> None:
    """Drop exact and near duplicates of earlier documents (MinHash)."""
    from ml_filter.prepare.deduplicate import deduplicate_documents

    show(deduplicate_documents(source, deduplicate, output))


@command(
    "ml-filter decontaminate runs/deduplicated --against gold.jsonl --output runs/clean",
    "ml-filter decontaminate runs/sample --against hf://datasets/OWNER/NAME --against-column question "
    "--against-split test --min-share 0.2 --output runs/clean",
)
def decontaminate(
    source: Sources,
    output: Output,
    decontaminate: DecontaminateConfig,
    against_split: Annotated[
        str, typer.Option(metavar="TEXT", help="Split of a Hub data set to keep out, if --config does not say")
    ] = "test",
) -> None:
    """Drop documents that contain texts of an evaluation set (word n-grams)."""
    from ml_filter.prepare.decontaminate import decontaminate_documents

    against = [
        part if "split" in part.model_fields_set else part.model_copy(update={"split": against_split})
        for part in decontaminate.against
    ]
    show(decontaminate_documents(source, decontaminate.model_copy(update={"against": against}), output))


@command(
    "ml-filter publish runs/scores --agreement runs/agreement --output runs/labelled",
    "ml-filter publish runs/scores --criterion educational_value --criterion adult_content --output runs/labelled",
    "ml-filter publish runs/scores --license odc-by --output runs/labelled --push OWNER/NAME --private",
)
def publish(
    scores: Annotated[str, typer.Argument(metavar="SCORES", help="Directory made by aggregate")],
    output: Output,
    publish: PublishConfig,
    documents: Documents = None,
) -> None:
    """Write a labelled data set with train, validation and test splits and a data card.

    Near duplicates stay in one split.
    """
    from ml_filter.publishing.labelled import publish_labels

    show(publish_labels(scores, publish, output, documents))


@command(
    "ml-filter export runs/filtered --to mongodb://localhost/corpus.documents",
    "ml-filter export runs/annotations --to mongodb:///corpus.annotations  # the server of ML_FILTER_MONGODB_URI",
)
def export(
    directory: Annotated[
        str, typer.Argument(metavar="DIRECTORY", help="Documents, annotations, aggregated scores, scored or filtered")
    ],
    to: Annotated[str, typer.Option(metavar="URL", help="Collection, as mongodb://HOST/DATABASE.COLLECTION")],
) -> None:
    """Write a directory to a MongoDB collection, each row once.

    Rows that are already there are replaced if they changed; run the command again to resume.
    """
    from ml_filter.publishing.warehouse import export_directory

    show_table("export", to, export_directory(directory, to))


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

    show_submissions(submit_batch(batch, resubmit=resubmit))


@command("ml-filter batch status runs/batch", "ml-filter batch status runs/batch --wait", group=batch)
def status(
    batch: Batch,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until all batches have ended")] = False,
    every: Annotated[float, typer.Option(min=0.1, metavar="X", help="Seconds between two requests of --wait")] = 60.0,
) -> None:
    """Show the status of the batches."""
    from ml_filter.annotation.batch import batch_status

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
        list[str] | None,
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

    manifest = collect_batch(batch, output, results=results or (), max_failed_share=max_failed_share)
    show(manifest, usd=batch_usd(batch, manifest))


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


Ratings = Annotated[
    list[str],
    typer.Argument(
        metavar="SCORES...", help="Directories of annotations or scores, and files of ratings; joined by document id"
    ),
]


@command(
    "ml-filter aggregate runs/annotations --method mean --output runs/scores",
    "ml-filter aggregate runs/llama runs/qwen runs/mistral --method dawid-skene --output runs/scores",
)
def aggregate(
    annotations: Annotated[list[str], typer.Argument(metavar="ANNOTATIONS...", help="Directories made by annotate")],
    output: Output,
    aggregate: AggregateConfig,
) -> None:
    """Combine the votes on each document into one score. Failed votes are counted and left out."""
    from ml_filter.agreement.aggregate import aggregate_annotations, read_reliability

    manifest = aggregate_annotations(annotations, aggregate, output)
    show(manifest)
    for reliability in read_reliability(manifest):
        show_reliability(reliability)


@command(
    "ml-filter rank runs/scores --by disagreement --size 500 --output runs/next",
    "ml-filter rank runs/scores --by expected-value --threshold 3 --size 500 --output runs/next",
)
def rank(
    scores: Annotated[str, typer.Argument(metavar="SCORES", help="Directory made by aggregate")],
    output: Output,
    rank: RankConfig,
    documents: Documents = None,
) -> None:
    """List the documents to annotate next, most useful first, as a source for annotate."""
    from ml_filter.agreement.ranking import rank_documents

    show(rank_documents(scores, rank, output, documents))


@command(
    "ml-filter convert annotations__edu__en.jsonl --to annotations --output runs/annotations",
    "ml-filter convert fineweb_edu.jsonl --to annotations --prompt educational_value "
    "--score-column llama3_70b_score --output runs/annotations",
    "ml-filter convert runs/annotations --to eurolingua --output runs/exported",
    "ml-filter convert runs/scores --to fineweb-edu --output runs/exported",
)
def convert(
    source: Annotated[SourceConfig, Options("INPUT")],
    to: Annotated[
        Literal["annotations", "eurolingua", "fineweb-edu"],
        typer.Option(help="annotations: read INPUT, whose format is detected; otherwise: export the directory INPUT"),
    ],
    output: Output,
    convert: ConvertConfig,
    documents: Documents = None,
) -> None:
    """Convert annotations from and to the formats of other tools.

    These are EuroLingua's JSON lines and flat rows as in FineWeb-Edu. Flat rows need a text to become annotations. An
    export is one file in the output directory: eurolingua.jsonl or fineweb-edu.jsonl.
    """
    from ml_filter.documents.convert import convert_to_annotations, write_eurolingua, write_fineweb_edu

    exported = Location(output) / f"{to}.jsonl"
    if to == "annotations":
        show(convert_to_annotations(source, convert, output))
        return
    if to == "eurolingua":
        counts = write_eurolingua(source.paths[0], str(exported), convert.criterion)
    else:
        counts = write_fineweb_edu(source.paths[0], str(exported), convert.criterion, documents)
    show_table(to, str(exported), counts)


@command(
    "ml-filter agreement runs/scores --gold gold.jsonl --gold-column human_score --by language,source "
    "--output runs/agreement",
    "ml-filter agreement ratings.jsonl --rating-columns anna,ben,carla --output runs/agreement",
    "ml-filter agreement runs/llama runs/qwen --criterion educational_value --output runs/agreement",
)
def agreement(scores: Ratings, output: Output, agreement: AgreementConfig) -> None:
    """Measure how well raters agree, with confidence intervals. Writes the figures as JSON, a page and plots."""
    from ml_filter.agreement.agreement import measure_agreement

    result, manifest = measure_agreement(scores, agreement, output)
    show_agreement(result, manifest.root)
