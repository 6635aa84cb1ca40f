"""How well scores agree with labels: the figures, without intervals (see `quality` for these)."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel

if TYPE_CHECKING:
    from numpy.typing import NDArray


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
    """Good documents are those whose rounded label reaches a whole score; the scores are to tell them from the rest.

    `good` counts them, `kept` those whose rounded score reaches it. Precision is None where none is kept, recall
    where none is good, F1 where neither. The area under the ROC curve and the average precision go by the scores
    themselves and are None where all documents are good, or none.
    """

    precision: float | None
    recall: float | None
    f1: float | None
    roc_auc: float | None
    average_precision: float | None
    good: int
    kept: int


class Evaluation(BaseModel):
    """Figures of a head on labelled documents. What is undefined is None, as Spearman where one side does not vary.

    Macro figures are means over the classes that occur on either side; there an undefined precision or recall counts
    as 0. `confusion` counts documents by the label's class (rows) and the score's (columns), in the order of
    `classes`. `thresholds` goes by whole score. Documents without a score are in `unscored` and in no figure.
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

    def figures(self, prefix: str = "") -> dict[str, float]:
        """The single numbers that are defined, for trackers and tables."""
        flat: dict[str, float | None] = {name: getattr(self, name) for name in _SINGLE}
        flat |= {f"f1_class_{name}": of.f1 for name, of in self.classes.items()}
        for name, of in self.thresholds.items():
            flat |= {f"f1_at_{name}": of.f1, f"roc_auc_at_{name}": of.roc_auc}
            flat |= {f"average_precision_at_{name}": of.average_precision}
        return {f"{prefix}{name}": float(value) for name, value in flat.items() if value is not None}


_SINGLE = [name for name in Evaluation.model_fields if name not in ("unscored", "classes", "confusion", "thresholds")]


def integer_scores(scores: NDArray[Any], low: float, high: float) -> NDArray[np.int64]:
    """Scores clamped to the range and rounded, halves upwards, so that int_score >= 3 means score >= 2.5."""
    rounded: NDArray[np.int64] = np.floor(np.clip(scores, low, high) + 0.5).astype(np.int64)
    return rounded


def whole_scores(low: float, high: float) -> range:
    """The whole scores of a range, as `integer_scores` gives them."""
    return range(math.floor(low + 0.5), math.floor(high + 0.5) + 1)


def evaluate_scores(
    scores: NDArray[Any],
    labels: NDArray[Any],
    *,
    low: float,
    high: float,
    threshold: float,
    whole: NDArray[Any] | None = None,
) -> Evaluation:
    """Compare scores with labels.

    Classes are whole scores: the labels rounded, and of the scores `whole`. At a threshold a document counts as good
    when its whole score reaches it.

    Args:
        scores: [documents]; nan: none.
        labels: [documents], in the range `low` to `high`; documents whose label is nan are left out.
        low: the lowest score.
        high: the highest score.
        threshold: of the figures named so.
        whole: int_score of each document, [documents]; not given: the scores rounded.

    Raises:
        ValueError: no document has both.
    """
    labelled = np.isfinite(labels)
    both = labelled & np.isfinite(scores)
    if not both.any():
        raise ValueError("no document has a score and a label")
    predicted = integer_scores(scores[both], low, high) if whole is None else whole[both].astype(np.int64)
    scores, labels = np.asarray(scores[both], np.float64), np.asarray(labels[both], np.float64)
    wanted = integer_scores(labels, low, high)
    at_threshold = _threshold_figures(scores, predicted, wanted, threshold)
    mse = float(((scores - labels) ** 2).mean())
    return Evaluation(
        documents=len(labels),
        unscored=int(labelled.sum() - both.sum()),
        spearman=_correlation("spearmanr", scores, labels),
        pearson=_correlation("pearsonr", scores, labels),
        mae=float(np.abs(scores - labels).mean()),
        mse=mse,
        rmse=math.sqrt(mse),
        **_class_figures(predicted, wanted),
        thresholds={k: _threshold_figures(scores, predicted, wanted, k) for k in whole_scores(low, high)[1:]},
        threshold=threshold,
        **_decisions(predicted >= threshold, wanted >= threshold),
        precision_at_threshold=at_threshold.precision,
        recall_at_threshold=at_threshold.recall,
        f1_at_threshold=at_threshold.f1,
    )


def _correlation(name: str, scores: NDArray[np.float64], labels: NDArray[np.float64]) -> float | None:
    import scipy.stats

    if len(np.unique(scores)) < 2 or len(np.unique(labels)) < 2:
        return None
    with warnings.catch_warnings():  # of values that differ by rounding only
        warnings.simplefilter("ignore", scipy.stats.DegenerateDataWarning)
        value = float(getattr(scipy.stats, name)(scores, labels).statistic)
    return value if math.isfinite(value) else None


def _class_figures(predicted: NDArray[np.int64], wanted: NDArray[np.int64]) -> dict[str, Any]:
    from sklearn.metrics import accuracy_score, precision_recall_fscore_support

    classes = np.union1d(predicted, wanted)
    confusion = np.zeros((len(classes), len(classes)), dtype=np.int64)
    np.add.at(confusion, (np.searchsorted(classes, wanted), np.searchsorted(classes, predicted)), 1)
    support, given = confusion.sum(axis=1), confusion.sum(axis=0)
    precision, recall, f1, _ = precision_recall_fscore_support(wanted, predicted, labels=classes, zero_division=0)
    return {
        "accuracy": float(accuracy_score(wanted, predicted)),
        "macro_precision": float(precision.mean()),
        "macro_recall": float(recall.mean()),
        "macro_f1": float(f1.mean()),
        "classes": {
            int(name): ClassFigures(
                precision=float(precision[k]) if given[k] else None,
                recall=float(recall[k]) if support[k] else None,
                f1=float(f1[k]),
                support=int(support[k]),
                predicted=int(given[k]),
            )
            for k, name in enumerate(classes)
        },
        "confusion": confusion.tolist(),
    }


def _decisions(kept: NDArray[np.bool_], good: NDArray[np.bool_]) -> dict[str, float]:
    from sklearn.metrics import accuracy_score, f1_score

    return {
        "accuracy_at_threshold": float(accuracy_score(good, kept)),
        "macro_f1_at_threshold": float(f1_score(good, kept, average="macro", zero_division=0)),
    }


def _threshold_figures(
    scores: NDArray[np.float64], predicted: NDArray[np.int64], wanted: NDArray[np.int64], threshold: float
) -> ThresholdFigures:
    from sklearn.metrics import average_precision_score, precision_recall_fscore_support, roc_auc_score

    kept, good = predicted >= threshold, wanted >= threshold
    precision, recall, f1, _ = precision_recall_fscore_support(
        good, kept, average="binary", pos_label=True, zero_division=0
    )
    both_sides = bool(good.any() and not good.all())
    return ThresholdFigures(
        precision=float(precision) if kept.any() else None,
        recall=float(recall) if good.any() else None,
        f1=float(f1) if kept.any() or good.any() else None,
        roc_auc=float(roc_auc_score(good, scores)) if both_sides else None,
        average_precision=float(average_precision_score(good, scores)) if both_sides else None,
        good=int(good.sum()),
        kept=int(kept.sum()),
    )
