"""Arguments and options that several commands share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ml_filter.settings import SourceConfig

_SOURCE_HELP = (
    "Files, globs, directories, URLs (Parquet, JSONL[.gz|.zst], WARC, WET), hf://datasets/OWNER/NAME, or installed: "
    "for the documents on this machine"
)
Sources = Annotated[list[str], typer.Argument(metavar="SOURCE...", help=_SOURCE_HELP, show_default=False)]
OneSource = Annotated[str, typer.Argument(help=_SOURCE_HELP, show_default=False)]
Output = Annotated[
    str, typer.Option("--output", "-o", metavar="DIR", help="Directory of the result; an unfinished one is finished")
]
TextColumn = Annotated[str, typer.Option(help="Column that holds the text")]
IdColumn = Annotated[str | None, typer.Option(help="Column that holds the id [default: id, else a hash of the text]")]
Split = Annotated[str, typer.Option(help="Split of a Hub data set")]
Subset = Annotated[str | None, typer.Option(help="Subset (configuration) of a Hub data set")]
LabelColumn = Annotated[str, typer.Option(help="Column that holds the label")]


def example(*lines: str) -> str:
    """The examples at the end of a command's --help."""
    return "[bold]Examples[/bold]\n\n" + "\n\n".join(f"$ {line}" for line in lines)


def source_config(paths: list[str], text: str, id_column: str | None, split: str, subset: str | None) -> SourceConfig:
    """The source that a command's options describe."""
    from ml_filter.settings import SourceConfig

    return SourceConfig(paths=paths, text_column=text, id_column=id_column, split=split, subset=subset)
