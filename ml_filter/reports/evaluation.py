"""The page that shows how a head does on labelled documents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ml_filter.reports.html import render
from ml_filter.reports.plots import scores_by_label

if TYPE_CHECKING:
    from ml_filter.heads.metrics import Evaluation


def evaluation_report(evaluation: Evaluation, scores: Sequence[float], labels: Sequence[float]) -> str:
    """HTML with the figures, the figures per class and the scores by label."""
    by_label: dict[float, list[float]] = {}
    for score, label in zip(scores, labels, strict=True):
        by_label.setdefault(round(label), []).append(score)
    return render("evaluation.html", evaluation=evaluation, plot=scores_by_label(by_label))
