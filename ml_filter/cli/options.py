"""Arguments and options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

from ml_filter.cli.command import Options
from ml_filter.documents.config import SourceConfig


def _source_at(path: str) -> SourceConfig:
    return SourceConfig(paths=[path])


Sources = Annotated[SourceConfig, Options("SOURCE...")]
Docs = Annotated[SourceConfig, Options("DOCS")]
Labels = Annotated[SourceConfig, Options("LABELS")]
Head = Annotated[str, typer.Argument(metavar="HEAD", help="Directory made by train, or hf://OWNER/NAME\\[@REVISION]")]
Output = Annotated[
    str, typer.Option("--output", "-o", metavar="DIR", help="Directory of the result; an unfinished run is resumed")
]
Documents = Annotated[
    SourceConfig | None,
    typer.Option(
        parser=_source_at, metavar="SOURCE", help="Documents of the scores (default: those that were annotated)"
    ),
]
