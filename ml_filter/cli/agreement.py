"""Commands on scores: combine them, compare them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from ml_filter.cli.app import app
from ml_filter.cli.options import Output, example
from ml_filter.cli.output import show

if TYPE_CHECKING:
    from ml_filter.settings import VoteMethod


@app.command(epilog=example("ml-filter aggregate runs/annotations --method mean --output runs/scores"))
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
    show(aggregate_annotations(annotations, config, output))
