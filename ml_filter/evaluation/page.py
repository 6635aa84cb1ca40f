"""The page that shows how a head does on labelled documents."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ml_filter.rendering.html import render
from ml_filter.rendering.plots import (
    confusion_tables,
    decision_curves,
    interval_plot,
    reliability_plot,
    scores_by_label,
    threshold_shares,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ml_filter.evaluation.evaluate import HeadEvaluation
    from ml_filter.statistics.intervals import Figure

_POINTS = 300
"""Of a curve; more cannot be seen."""
_STRATUM_PLOTS = {"spearman": "Spearman", "f1_at_threshold": "F1 at the threshold"}


def evaluation_plots(
    evaluation: HeadEvaluation, scores: NDArray[np.floating], labels: NDArray[np.float64]
) -> dict[str, str]:
    """SVG texts by name: `confusion`, `scores`, and where there is something to show `curves`, `thresholds`,
    `reliability`, `strata_<figure>`, `sources` and `comparison`.

    Args:
        evaluation: the figures.
        scores: of the documents [documents]; nan: none.
        labels: of the documents [documents].
    """
    import numpy as np

    from ml_filter.statistics.metrics import PAIR_FIGURES

    scored = np.isfinite(scores)
    scores, labels = scores[scored], labels[scored]
    whole = np.floor(labels + 0.5)
    plots = {
        "confusion": confusion_tables({("label", "int_score"): (list(evaluation.classes), evaluation.confusion)}),
        "scores": scores_by_label({float(label): scores[whole == label].tolist() for label in np.unique(whole)}),
    }
    reached = [k for k, of in evaluation.thresholds.items() if of.roc_auc is not None]
    if reached:
        curves = {f"label ≥ {k}": _curves(scores, whole >= k) for k in reached}
        plots["curves"] = decision_curves(
            {name: of[0] for name, of in curves.items()}, {name: of[1] for name, of in curves.items()}
        )
    names = {"precision": "precision", "recall": "recall", "documents": "documents kept", "tokens": "tokens kept"}
    shares = {
        shown: [_triple(getattr(row, name)) for row in evaluation.table]
        for name, shown in names.items()
        if evaluation.table and getattr(evaluation.table[0], name) is not None
    }
    if shares:
        plots["thresholds"] = threshold_shares(
            [row.score for row in evaluation.table], shares, xlabel="threshold on the score"
        )
    bins = [(one.predicted, *known) for one in evaluation.reliability if (known := _triple(one.observed))]
    if bins:
        plots["reliability"] = reliability_plot(
            bins, xlabel=f"calibrated probability of label ≥ {evaluation.threshold:g}", ylabel="share that is"
        )
    for name, shown in _STRATUM_PLOTS.items():
        rows = [
            (f"{one.column}: {one.value} (n={one.documents:,})", *known)
            for one in evaluation.strata
            if (known := _triple(one.figures[name]))
        ]
        if rows:
            plots[f"strata_{name}"] = interval_plot(rows, xlabel=shown, reference=evaluation.intervals[name].value)
    if found := evaluation.discrimination:
        shown_shares = {
            f"within one {found.column}": found.within,
            f"across {found.column}s, label pairs alike": found.across_alike,
            f"across {found.column}s": found.across,
        }
        rows = [(name, *known) for name, of in shown_shares.items() if (known := _triple(of))]
        if rows:
            plots["sources"] = interval_plot(rows, xlabel="share of pairs in the right order", reference=0.5)
    if evaluation.comparison:
        rows = [
            (PAIR_FIGURES[name], *known)
            for name, of in evaluation.comparison.differences.items()
            if (known := _triple(of))
        ]
        if rows:
            plots["comparison"] = interval_plot(rows, xlabel="this head minus the other", reference=0)
    return plots


def evaluation_report(evaluation: HeadEvaluation, scores: NDArray[np.floating], labels: NDArray[np.float64]) -> str:
    """HTML with the figures, their intervals, the plots, and the widest disagreements to read."""
    from ml_filter.statistics.metrics import COMPARED_FIGURES, PAIR_FIGURES

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
    wrong, right, _ = roc_curve(good, scores)
    return (_thinned(recall), _thinned(precision)), (_thinned(wrong), _thinned(right))


def _thinned(values: NDArray[np.floating]) -> list[float]:
    import numpy as np

    chosen = np.unique(np.linspace(0, len(values) - 1, _POINTS).round().astype(int))
    thinned: list[float] = values[chosen].tolist()
    return thinned


def _triple(figure: Figure) -> tuple[float, float, float] | None:
    """A figure with its interval, where it has both."""
    if figure.value is None or figure.low is None or figure.high is None:
        return None
    return figure.value, figure.low, figure.high
