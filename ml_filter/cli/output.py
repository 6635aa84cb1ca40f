"""How commands print what they did."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from ml_filter.documents.manifest import Manifest
    from ml_filter.heads.metrics import Evaluation


def figures_of(evaluation: Evaluation) -> dict[str, float]:
    """The figures of an evaluation that a terminal has room for."""
    figures = evaluation.figures()
    del figures["documents"], figures["threshold"]
    return {name: value for name, value in figures.items() if not name.startswith("f1_class")}


def show(manifest: Manifest) -> None:
    """What a stage did, from its manifest."""
    show_table(manifest.kind, manifest.root, manifest.counts)


def show_table(title: str, path: str, counts: Mapping[str, int], figures: Mapping[str, float] | None = None) -> None:
    """Counts, figures and where the result lies."""
    table = Table(title=title, title_justify="left", show_header=False, box=None)
    table.add_column(style="dim")
    table.add_column(justify="right")
    for name, count in counts.items():
        table.add_row(name.replace("_", " "), f"{count:,}")
    for name, value in (figures or {}).items():
        table.add_row(name.replace("_", " "), f"{value:.3f}")
    console = Console()
    console.print(table)
    console.print(f"in {path}", soft_wrap=True, highlight=False)
