"""How well scores agree with labels: the figures, without intervals (`quality` adds them)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, computed_field

from ml_filter.criterion import Criterion
from ml_filter.statistics.agreement import confusion_table
from ml_filter.statistics.intervals import MIN_FOR_INTERVAL, Array, Statistic, few_labels, single_figures
from ml_filter.statistics.rounding import integer_scores, whole_scores
from ml_filter.statistics.weighted import at_threshold, rank_and_distance, ranking, table_statistic


class ClassFigures(BaseModel):
    """One class: its figures, and how many documents have it by their label (`support`) and score (`predicted`).

    Precision is None where the scores never give the class, recall where no label does.
    """

    precision: float | None
    recall: float | None
    f1: float
    support: int
    predicted: int


class ThresholdFigures(BaseModel):
    """How well scores separate good documents, whose rounded label reaches a whole score, from the rest.

    `good` counts them, `kept` those whose rounded score reaches it. Undefined figures are None. The area under the ROC
    curve and the average precision are of the scores before rounding. Without a good document, all are undefined.
    """

    precision: float | None
    recall: float | None
    f1: float | None
    roc_auc: float | None
    average_precision: float | None
    good: int
    kept: int


class Evaluation(BaseModel):
    """Figures of a head on labelled documents. Undefined figures are None, such as Spearman where scores are constant.

    Macro figures are means over the classes that occur on either side, where an undefined precision or recall counts
    as 0. `confusion` counts documents by the label's class (rows) and the score's (columns). The keys of `thresholds`
    are whole scores. Documents without a score are counted in `unscored` and are in no figure.
    """

    documents: int
    unscored: int = 0
    spearman: float | None
    pearson: float | None
    mae: float
    mse: float
    rmse: float
    accuracy: float
    macro_precision: float
    macro_recall: float
    macro_f1: float
    classes: dict[int, ClassFigures]
    confusion: list[list[int]]
    thresholds: dict[int, ThresholdFigures]
    threshold: float
    accuracy_at_threshold: float
    macro_f1_at_threshold: float
    precision_at_threshold: float | None
    recall_at_threshold: float | None
    f1_at_threshold: float | None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def too_few_labels(self) -> str | None:
        """Why the figures at the threshold say little: fewer than `MIN_FOR_INTERVAL` labels reach it."""
        k = math.ceil(self.threshold)
        if k not in self.thresholds or self.thresholds[k].good >= MIN_FOR_INTERVAL:
            return None
        return few_labels(self.thresholds[k].good, self.documents, self.threshold)

    def figures(self, prefix: str = "") -> dict[str, float]:
        """The defined figures as flat numbers, for trackers and tables."""
        flat: dict[str, float | None] = {name: getattr(self, name) for name in _SINGLE}
        flat |= {f"f1_class_{k}": figures.f1 for k, figures in self.classes.items()}
        for k, figures in self.thresholds.items():
            flat |= {f"f1_at_{k}": figures.f1, f"roc_auc_at_{k}": figures.roc_auc}
            flat |= {f"average_precision_at_{k}": figures.average_precision}
        return {f"{prefix}{name}": float(value) for name, value in flat.items() if value is not None}


_SINGLE = [name for name in Evaluation.model_fields if name not in ("unscored", "classes", "confusion", "thresholds")]


def evaluate_scores(
    scores: NDArray[Any],
    labels: NDArray[Any],
    criterion: Criterion,
    *,
    int_scores: NDArray[Any] | None = None,
) -> Evaluation:
    """Compare scores [documents] (NaN: none) with labels [documents] (NaN: left out); rounded, they are the classes.

    `int_scores` are the whole scores [documents]; None: the scores rounded. A document counts as good when its whole
    score reaches the threshold of the criterion.

    Raises:
        ValueError: no document has both a score and a label.
    """
    labelled = np.isfinite(labels)
    both = labelled & np.isfinite(scores)
    if not both.any():
        raise ValueError("no document has both a score and a label")
    low, high, threshold = criterion.low, criterion.high, criterion.threshold
    predicted = integer_scores(scores[both], low, high) if int_scores is None else int_scores[both].astype(np.int64)
    scores, labels = np.asarray(scores[both], np.float64), np.asarray(labels[both], np.float64)
    wanted = integer_scores(labels, low, high)
    distances: dict[str, Any] = single_figures(np.column_stack([labels, scores]), rank_and_distance)
    del distances["mean_difference"]
    good = np.column_stack([wanted >= threshold, predicted >= threshold]).astype(np.float64)
    decisions: dict[str, Any] = single_figures(good, at_threshold)
    if not good[:, 0].any():
        decisions |= dict.fromkeys(("precision_at_threshold", "f1_at_threshold"))
    return Evaluation(
        documents=len(labels),
        unscored=int(labelled.sum() - both.sum()),
        **distances,
        rmse=math.sqrt(distances["mse"]),
        **_class_figures(wanted, predicted),
        thresholds={k: _threshold_figures(scores, predicted, wanted, k) for k in whole_scores(low, high)[1:]},
        threshold=threshold,
        accuracy_at_threshold=decisions.pop("agreement_at_threshold"),
        **decisions,
    )


def threshold_statistic(k: float) -> Statistic:
    """Statistic of rows (score, int_score, rounded label): the figures of `ThresholdFigures` for good from k on."""

    def statistic(rows: Array, weights: Array) -> dict[str, Array]:
        decisions = at_threshold((rows[:, [2, 1]] >= k).astype(np.float64), weights)
        figures = {name: decisions[f"{name}_at_threshold"] for name in ("precision", "recall", "f1")}
        return figures | ranking(rows[:, 0], (rows[:, 2] >= k).astype(np.float64), weights)

    return statistic


def _threshold_figures(
    scores: Array, predicted: NDArray[np.int64], wanted: NDArray[np.int64], k: int
) -> ThresholdFigures:
    figures: dict[str, Any] = single_figures(np.column_stack([scores, predicted, wanted]), threshold_statistic(k))
    good = int((wanted >= k).sum())
    if not good:
        figures |= dict.fromkeys(("precision", "f1"))
    return ThresholdFigures(**figures, good=good, kept=int((predicted >= k).sum()))


def _class_figures(wanted: NDArray[np.int64], predicted: NDArray[np.int64]) -> dict[str, Any]:
    classes = np.union1d(predicted, wanted)
    rows = np.column_stack([wanted, predicted]).astype(np.float64)
    figures = single_figures(rows, table_statistic(classes.astype(np.float64)))
    by_class = {
        k: ClassFigures.model_validate(
            {name: figures[f"{name}@{k}"] for name in ("precision", "recall", "f1")}
            | {"support": (wanted == k).sum(), "predicted": (predicted == k).sum()}
        )
        for k in classes.tolist()
    }
    return {
        "accuracy": figures["exact_agreement"],
        "macro_precision": sum(figures_of.precision or 0.0 for figures_of in by_class.values()) / len(by_class),
        "macro_recall": sum(figures_of.recall or 0.0 for figures_of in by_class.values()) / len(by_class),
        "macro_f1": figures["macro_f1"],
        "classes": by_class,
        "confusion": confusion_table(rows, classes).tolist(),
    }
