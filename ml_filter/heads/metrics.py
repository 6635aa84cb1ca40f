"""How well scores agree with labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel

if TYPE_CHECKING:
    from numpy.typing import NDArray


class ClassFigures(BaseModel):
    """Precision, recall and F1 of one class; `support` counts labels. A class nobody has counts as 0."""

    precision: float
    recall: float
    f1: float
    support: int


class Evaluation(BaseModel):
    """Figures of a head on labelled documents. `spearman` is None where one side does not vary."""

    documents: int
    spearman: float | None
    mae: float
    accuracy: float
    macro_f1: float
    classes: dict[int, ClassFigures]
    threshold: float
    accuracy_at_threshold: float
    macro_f1_at_threshold: float
    precision_at_threshold: float
    recall_at_threshold: float
    f1_at_threshold: float

    def figures(self, prefix: str = "") -> dict[str, float]:
        """The single numbers, for trackers and tables."""
        flat = self.model_dump(exclude={"classes"}, exclude_none=True)
        flat |= {f"f1_class_{name}": figures.f1 for name, figures in self.classes.items()}
        return {f"{prefix}{name}": float(value) for name, value in flat.items()}


def integer_scores(scores: NDArray[Any], low: float, high: float) -> NDArray[np.int64]:
    """Scores clamped to the range and rounded, halves upwards, so that int_score >= 3 means score >= 2.5."""
    rounded: NDArray[np.int64] = np.floor(np.clip(scores, low, high) + 0.5).astype(np.int64)
    return rounded


def evaluate_scores(
    scores: NDArray[Any], labels: NDArray[Any], *, low: float, high: float, threshold: float
) -> Evaluation:
    """Compare scores with labels, both [documents] in the range low to high.

    Classes are the rounded values; macro figures go over the classes that occur on either side. At the threshold
    a document counts as good when its rounded value reaches it.
    """
    from scipy.stats import spearmanr
    from sklearn.metrics import accuracy_score, f1_score, precision_recall_fscore_support

    predicted, wanted = integer_scores(scores, low, high), integer_scores(labels, low, high)
    classes = np.union1d(predicted, wanted)
    columns = precision_recall_fscore_support(wanted, predicted, labels=classes, zero_division=0)
    varies = len(np.unique(scores)) > 1 and len(np.unique(labels)) > 1
    good, wanted_good = predicted >= threshold, wanted >= threshold
    precision, recall, f1, _ = precision_recall_fscore_support(
        wanted_good, good, average="binary", pos_label=True, zero_division=0
    )
    return Evaluation(
        documents=len(labels),
        spearman=float(spearmanr(scores, labels).statistic) if varies else None,
        mae=float(np.abs(scores - labels).mean()),
        accuracy=float(accuracy_score(wanted, predicted)),
        macro_f1=float(f1_score(wanted, predicted, average="macro", zero_division=0)),
        classes={
            int(name): ClassFigures(precision=p, recall=r, f1=f, support=int(s))
            for name, p, r, f, s in zip(classes, *columns, strict=True)
        },
        threshold=threshold,
        accuracy_at_threshold=float(accuracy_score(wanted_good, good)),
        macro_f1_at_threshold=float(f1_score(wanted_good, good, average="macro", zero_division=0)),
        precision_at_threshold=float(precision),
        recall_at_threshold=float(recall),
        f1_at_threshold=float(f1),
    )
