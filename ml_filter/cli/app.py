"""The application that the commands register with."""

from __future__ import annotations

from typing import Annotated

import typer

from ml_filter import __version__

app = typer.Typer(
    name="ml-filter",
    help="The quality filter for pretraining corpora: sample, annotate by LLM, train a head, score, keep the best.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _start(
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log every failed document")] = False,
) -> None:
    from ml_filter.logs import configure_logging

    if version:
        print(f"ml-filter {__version__}")
        raise typer.Exit
    configure_logging(level="DEBUG" if verbose else "INFO")
