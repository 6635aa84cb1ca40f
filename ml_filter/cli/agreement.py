"""Commands on scores: combine them, compare them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from ml_filter.cli.app import app
from ml_filter.cli.options import (
    Criterion,
    Documents,
    GoodFrom,
    IdColumn,
    Output,
    ScoreRange,
    TextColumn,
    Use,
    example,
    names_in,
)
from ml_filter.cli.output import show, show_agreement, show_reliability, show_table

if TYPE_CHECKING:
    from ml_filter.agreement.config import VoteMethod

RatingColumns = Annotated[
    str,
    typer.Option(
        help="Columns of rated files, comma-separated, each a rater; a list column holds one rater per entry "
        "(default: score, else scores)"
    ),
]
VotesAsRaters = Annotated[
    bool, typer.Option("--votes-as-raters", help="Each vote is a rater, not the mean of an annotator's votes")
]


@app.command(
    epilog=example(
        "ml-filter aggregate runs/annotations --method mean --output runs/scores",
        "ml-filter aggregate runs/llama runs/qwen runs/mistral --method dawid-skene --output runs/scores",
    )
)
def aggregate(
    annotations: Annotated[list[Path], typer.Argument(metavar="ANNOTATIONS...", help="Directories made by annotate")],
    output: Output,
    method: Annotated[
        str,
        typer.Option(
            help="mean, median, majority (of the answers; ties averaged), min, max or dawid-skene (rounded scores)"
        ),
    ] = "mean",
    use: Annotated[
        str | None,
        typer.Option(
            help="expected: from log-probabilities where there are any; answer: the parsed answer (default: expected; "
            "for majority answer)"
        ),
    ] = None,
) -> None:
    """Combine the votes on each document into one score. Failed votes are counted, never averaged in."""
    from ml_filter.agreement.aggregate import aggregate_annotations, read_reliability
    from ml_filter.agreement.config import AggregateConfig

    config = AggregateConfig(method=cast("VoteMethod", method), use=cast(Any, use))
    manifest = aggregate_annotations(annotations, config, output)
    show(manifest)
    for reliability in read_reliability(manifest):
        show_reliability(reliability)


@app.command(
    epilog=example(
        "ml-filter rank runs/scores --by disagreement --size 500 --output runs/next",
        "ml-filter rank runs/scores --by expected-value --threshold 3 --size 500 --output runs/next",
    )
)
def rank(
    scores: Annotated[Path, typer.Argument(help="Directory made by aggregate")],
    size: Annotated[int, typer.Option(min=1, help="How many documents")],
    output: Output,
    by: Annotated[
        str,
        typer.Option(
            help="disagreement: spread of the votes, of which there must be several; expected-value: how probably a "
            "filter at the threshold errs"
        ),
    ] = "disagreement",
    threshold: Annotated[float, typer.Option(help="Documents at or above are kept; for expected-value")] = 3.0,
    criterion: Criterion = None,
    documents: Documents = None,
) -> None:
    """List the documents to annotate next, the first one first, as a source for annotate."""
    from ml_filter.agreement.config import RankConfig
    from ml_filter.agreement.ranking import rank_documents
    from ml_filter.documents.config import SourceConfig

    config = RankConfig(size=size, by=cast(Any, by), threshold=threshold, criterion=criterion)
    show(rank_documents(scores, config, output, SourceConfig(paths=[documents]) if documents else None))


@app.command(
    epilog=example(
        "ml-filter convert annotations__edu__en.jsonl --to annotations --output runs/annotations",
        "ml-filter convert fineweb_edu.jsonl --to annotations --prompt educational_value "
        "--score-column llama3_70b_score --output runs/annotations",
        "ml-filter convert runs/annotations --to eurolingua --output annotations.jsonl",
        "ml-filter convert runs/scores --to fineweb-edu --output scored.jsonl",
    )
)
def convert(
    source: Annotated[str, typer.Argument(metavar="INPUT", help="An older file, or a directory to write as one")],
    to: Annotated[
        Literal["annotations", "eurolingua", "fineweb-edu"],
        typer.Option(help="annotations: read INPUT, whose format is found out; the others: write INPUT"),
    ],
    output: Annotated[str, typer.Option("--output", "-o", help="Directory of annotations, or file to write")],
    prompt: Annotated[str | None, typer.Option(help="Name of the prompt, where the file has none")] = None,
    annotator: Annotated[str | None, typer.Option(help="Who scored, where the file does not say")] = None,
    criterion: Criterion = None,
    language: Annotated[str | None, typer.Option(help="Language of the prompt, where the file has none")] = None,
    score_column: Annotated[
        str, typer.Option(help="Columns of flat rows, comma-separated, each an annotator")
    ] = "score",
    score_range: ScoreRange = None,
    documents: Documents = None,
    text_column: TextColumn = "text",
    id_column: IdColumn = None,
) -> None:
    """Read or write the annotations of other tools: EuroLingua's JSON lines, flat rows as in FineWeb-Edu.

    Flat rows are read as documents and need a text; agreement reads scores without one as they are.
    """
    from ml_filter.documents.config import ConvertConfig, SourceConfig
    from ml_filter.documents.convert import convert_to_annotations, write_eurolingua, write_fineweb_edu

    if to == "eurolingua":
        show_table(to, output, write_eurolingua(source, output, criterion))
    elif to == "fineweb-edu":
        texts = SourceConfig(paths=[documents]) if documents else None
        show_table(to, output, write_fineweb_edu(source, output, criterion, texts))
    else:
        config = ConvertConfig(
            prompt=prompt,
            annotator=annotator,
            criterion=criterion,
            language=language,
            score_columns=names_in(score_column),
            score_range=score_range,
        )
        found = SourceConfig(paths=[source], text_column=text_column, id_column=id_column)
        show(convert_to_annotations(found, config, output))


@app.command(
    epilog=example(
        "ml-filter agreement runs/scores --gold gold.jsonl --gold-column human_score --by language,source "
        "--output runs/agreement",
        "ml-filter agreement ratings.jsonl --rating-columns anna,ben,carla --output runs/agreement",
        "ml-filter agreement runs/llama runs/qwen --criterion educational_value --output runs/agreement",
    )
)
def agreement(
    scores: Annotated[
        list[str],
        typer.Argument(
            metavar="SCORES...",
            help="Directories of annotations or scores, and files of ratings; joined by document id",
        ),
    ],
    output: Output,
    gold: Annotated[str | None, typer.Option(metavar="FILE", help="Human ratings, the reference")] = None,
    gold_column: Annotated[str, typer.Option(help="Column of gold that holds the rating")] = "human_score",
    gold_id_column: IdColumn = None,
    rating_columns: RatingColumns = "",
    id_column: IdColumn = None,
    criterion: Criterion = None,
    by: Annotated[str, typer.Option(help="Columns, comma-separated; each of their values is a stratum")] = "",
    use: Use = "expected",
    votes_as_raters: VotesAsRaters = False,
    threshold: GoodFrom = 3.0,
    confidence: Annotated[float, typer.Option(help="Share of the resamples that an interval holds")] = 0.95,
    resamples: Annotated[int, typer.Option(min=100, help="Bootstrap resamples of the documents")] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of the resampling")] = 0,
) -> None:
    """Measure how well raters agree, with intervals: figures as JSON, a page, and plots."""
    from ml_filter.agreement.config import AgreementConfig
    from ml_filter.agreement.measure import measure_agreement
    from ml_filter.documents.config import SourceConfig

    config = AgreementConfig(
        gold=SourceConfig(paths=[gold], id_column=gold_id_column) if gold else None,
        gold_column=gold_column,
        rating_columns=names_in(rating_columns),
        id_column=id_column,
        criterion=criterion,
        by=names_in(by),
        use=cast(Any, use),
        votes_as_raters=votes_as_raters,
        threshold=threshold,
        confidence=confidence,
        resamples=resamples,
        seed=seed,
    )
    measured, manifest = measure_agreement(scores, config, output)
    show_agreement(measured, manifest.root)
