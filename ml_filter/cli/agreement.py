"""Commands on scores: combine, compare, rank and convert them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ml_filter.agreement.config import AggregateConfig, AgreementConfig, RankConfig
from ml_filter.cli.command import Options, command
from ml_filter.cli.options import Documents, Output
from ml_filter.cli.output import show, show_agreement, show_reliability, show_table
from ml_filter.documents.config import ConvertConfig, SourceConfig

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
    annotations: Annotated[list[Path], typer.Argument(metavar="ANNOTATIONS...", help="Directories made by annotate")],
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
    scores: Annotated[Path, typer.Argument(metavar="SCORES", help="Directory made by aggregate")],
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

    exported = Path(output) / f"{to}.jsonl"
    if to == "annotations":
        show(convert_to_annotations(source, convert, output))
        return
    exported.parent.mkdir(parents=True, exist_ok=True)
    if to == "eurolingua":
        counts = write_eurolingua(source.paths[0], exported, convert.criterion)
    else:
        counts = write_fineweb_edu(source.paths[0], exported, convert.criterion, documents)
    show_table(to, str(exported), counts)


@command(
    "ml-filter agreement runs/scores --gold gold.jsonl --gold-column human_score --by language,source "
    "--output runs/agreement",
    "ml-filter agreement ratings.jsonl --rating-columns anna,ben,carla --output runs/agreement",
    "ml-filter agreement runs/llama runs/qwen --criterion educational_value --output runs/agreement",
)
def agreement(scores: Ratings, output: Output, agreement: AgreementConfig) -> None:
    """Measure how well raters agree, with confidence intervals. Writes the figures as JSON, a page and plots."""
    from ml_filter.agreement.measure import measure_agreement

    result, manifest = measure_agreement(scores, agreement, output)
    show_agreement(result, manifest.root)
