"""The page that shows two annotators side by side."""

from __future__ import annotations

from ml_filter.evaluation.comparison import Comparison
from ml_filter.rendering.html import render
from ml_filter.statistics.metrics import PAIR_FIGURES


def comparison_report(comparison: Comparison, plots: dict[str, str]) -> str:
    """HTML with the figures of both, their differences with intervals, and the documents on which they differ most."""
    return render("evaluation/templates/comparison.html", c=comparison, plots=plots, names=PAIR_FIGURES)
