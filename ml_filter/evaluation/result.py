"""What an evaluation of a head consists of, and the page that shows it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from ml_filter.rendering.html import render
from ml_filter.rendering.plots import (
    confusion_tables,
    decision_curves,
    interval_plot,
    reliability_plot,
    scores_by_label,
    threshold_shares,
)
from ml_filter.statistics.intervals import Figure
from ml_filter.statistics.metrics import COMPARED_FIGURES, PAIR_FIGURES
from ml_filter.statistics.quality import HeadComparison, Quality
from ml_filter.statistics.rounding import round_scores

EVALUATION_NAME = "evaluation.json"
REPORT_NAME = "evaluation.html"
Unit = Literal["tokens", "words"]


class Disagreement(BaseModel):
    """A document whose score is far from its label, and the beginning of its text."""

    id: str
    label: float
    score: float
    excerpt: str


def excerpt_of(text: str, characters: int) -> str:
    """The beginning of a text, with an ellipsis if there is more."""
    return text if len(text) <= characters else text[:characters] + " …"


class HeadEvaluation(Quality):
    """The content of evaluation.json. `worst` holds the largest disagreements, the largest first.

    The shares of tokens in `table` assume that tokens are proportional to UTF-8 bytes. Lengths are those of whole
    texts, in `length_unit`: tokens of the head's own tokenizer, or words if it has none.
    """

    head: str
    head_digest: str
    criterion: str
    labels: str
    label_column: str
    unlabelled: int
    compared_with: str | None
    comparison: HeadComparison | None
    worst: list[Disagreement]
    length_unit: Unit


_POINTS = 300
"""Points of a curve at most; more would not be visible."""
_STRATUM_PLOTS = {"spearman": "Spearman", "f1_at_threshold": "F1 at the threshold"}


def evaluation_plots(
    evaluation: HeadEvaluation, scores: NDArray[np.floating], labels: NDArray[np.float64]
) -> dict[str, str]:
    """SVG texts by name, from scores (NaN: none) and labels [documents].

    These are `confusion`, `scores`, and if the data allow it `curves`, `thresholds`, `reliability`,
    `strata_<figure>`, `sources` and `comparison`.
    """
    scored = np.isfinite(scores)
    scores, labels = scores[scored], labels[scored]
    rounded = round_scores(labels)
    plots = {
        "confusion": confusion_tables({("label", "int_score"): (list(evaluation.classes), evaluation.confusion)}),
        "scores": scores_by_label({float(label): scores[rounded == label].tolist() for label in np.unique(rounded)}),
    }
    defined = [k for k, figures in evaluation.thresholds.items() if figures.roc_auc is not None]
    if defined:
        curves = {f"label ≥ {k}": _curves(scores, rounded >= k) for k in defined}
        plots["curves"] = decision_curves(
            {name: precision_recall for name, (precision_recall, _) in curves.items()},
            {name: rates for name, (_, rates) in curves.items()},
        )
    names = {"precision": "precision", "recall": "recall", "documents": "documents kept", "tokens": "tokens kept"}
    shares = {
        title: [figure and figure.interval for figure in (getattr(row, name) for row in evaluation.table)]
        for name, title in names.items()
        if evaluation.table and getattr(evaluation.table[0], name) is not None
    }
    if any(map(any, shares.values())):
        plots["thresholds"] = threshold_shares(
            [row.score for row in evaluation.table], shares, xlabel="threshold on the score"
        )
    bins = [(bin_.predicted, *bin_.observed.interval) for bin_ in evaluation.reliability if bin_.observed.interval]
    if bins:
        plots["reliability"] = reliability_plot(
            bins, xlabel=f"calibrated probability of label ≥ {evaluation.threshold:g}", ylabel="observed share"
        )
    for name, title in _STRATUM_PLOTS.items():
        strata = {f"{s.column}: {s.value} (n={s.documents:,})": s.figures[name] for s in evaluation.strata}
        if rows := _rows(strata):
            plots[f"strata_{name}"] = interval_plot(rows, xlabel=title, reference=evaluation.intervals[name].value)
    if pairs := evaluation.discrimination:
        shown = {
            f"within one {pairs.column}": pairs.within,
            f"across {pairs.column}s, same label pairs": pairs.across_alike,
            f"across {pairs.column}s": pairs.across,
        }
        if rows := _rows(shown):
            plots["sources"] = interval_plot(rows, xlabel="share of pairs in the right order", reference=0.5)
    if evaluation.comparison:
        differences = {PAIR_FIGURES[name]: figure for name, figure in evaluation.comparison.differences.items()}
        if rows := _rows(differences):
            plots["comparison"] = interval_plot(rows, xlabel="this head minus the other", reference=0)
    return plots


def evaluation_report(evaluation: HeadEvaluation, scores: NDArray[np.floating], labels: NDArray[np.float64]) -> str:
    """HTML with the figures, their intervals, the plots, and the largest disagreements to read."""
    return render(
        "evaluation/templates/evaluation.html",
        e=evaluation,
        plots=evaluation_plots(evaluation, scores, labels),
        names=PAIR_FIGURES,
        more_is_better=COMPARED_FIGURES,
    )


def _curves(
    scores: NDArray[np.floating], good: NDArray[np.bool_]
) -> tuple[tuple[list[float], list[float]], tuple[list[float], list[float]]]:
    """Recalls and precisions, false and true positive rates."""
    from sklearn.metrics import precision_recall_curve, roc_curve

    precision, recall, _ = precision_recall_curve(good, scores)
    false_positives, true_positives, _ = roc_curve(good, scores)
    return (_thinned(recall), _thinned(precision)), (_thinned(false_positives), _thinned(true_positives))


def _thinned(values: NDArray[np.floating]) -> list[float]:
    chosen = np.unique(np.linspace(0, len(values) - 1, _POINTS).round().astype(int))
    thinned: list[float] = values[chosen].tolist()
    return thinned


def _rows(figures: Mapping[str, Figure]) -> list[tuple[str, float, float, float]]:
    """The figures that have an interval, by title."""
    return [(title, *figure.interval) for title, figure in figures.items() if figure.interval]
