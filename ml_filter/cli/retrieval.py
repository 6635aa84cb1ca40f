"""Commands that index a corpus and answer questions from it."""

from __future__ import annotations

from ml_filter.cli.command import Output, Sources, command
from ml_filter.cli.output import show
from ml_filter.downstream.retrieval.config import IndexConfig


@command(
    "ml-filter index runs/filtered --output runs/index",
    "ml-filter index 'corpus/*.parquet' --encoder intfloat/multilingual-e5-small --column topic --output runs/index",
    "ml-filter index runs/filtered --store http://localhost:6333 --output runs/index",
)
def index(source: Sources, output: Output, index: IndexConfig) -> None:
    """Split documents into passages, embed them, and index them for ask.

    Run the command again to resume, to add what the source has gained, or to repair the index.
    """
    from ml_filter.downstream.retrieval.index import build_index

    show(build_index(source, index, output))
