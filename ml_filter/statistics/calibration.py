"""What a score says about the label: probabilities, whole scores, and what a threshold keeps.

For every whole score k a rising curve gives the probability that the label, rounded, reaches k. `int_score` is at least
k exactly where that probability is at least one half, which makes it the median of the label given the score. For a k
that too few labels reach, or too few miss, no curve is fitted, and int_score >= k begins where rounding puts it.

Sources: Zadrozny and Elkan 2002 (isotonic regression); Platt 1999 (a logistic curve, fitted to smoothed targets).
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from loguru import logger
from numpy.typing import NDArray
from pydantic import BaseModel

from ml_filter.criterion import Criterion
from ml_filter.errors import InputError
from ml_filter.statistics.intervals import (
    Array,
    Figure,
    Resampling,
    Statistic,
    divide,
    resampled_figures,
)
from ml_filter.statistics.rounding import integer_scores, whole_scores

Method = Literal["isotonic", "platt"]
MIN_LABELS = 50
"""Fewer labelled documents give no calibration."""
MIN_EACH_SIDE = 10
"""A whole score that fewer labels reach, or fewer miss, has no curve."""
STEP = 0.25


class IsotonicCurve(BaseModel):
    """Probabilities at scores in rising order: linear in between, constant outside."""

    scores: list[float]
    probabilities: list[float]

    def __call__(self, scores: NDArray[Any]) -> Array:
        """Probabilities of scores of any shape."""
        values: Array = np.interp(scores, self.scores, self.probabilities)
        return values


class PlattCurve(BaseModel):
    """1 / (1 + exp(-(slope * score + intercept))); the slope is not negative."""

    slope: float
    intercept: float

    def __call__(self, scores: NDArray[Any]) -> Array:
        """Probabilities of scores of any shape."""
        values: Array = np.exp(-np.logaddexp(0, -(self.slope * np.asarray(scores, np.float64) + self.intercept)))
        return values


class ThresholdRow(BaseModel):
    """What keeping the documents from a score on gives.

    `precision` is the share of good documents among those kept, `recall` that of the good documents that is kept,
    `documents` and `tokens` the shares kept of all. `tokens` is None where token counts were not known.
    """

    score: float
    precision: Figure
    recall: Figure
    documents: Figure
    tokens: Figure | None = None


class Calibration(BaseModel):
    """How the scores of one criterion relate to its labels.

    The keys of `curves` and `cuts` are whole scores k: the probability that the label reaches k, and the lowest score
    whose int_score is k or more (None: no score). `table` counts documents whose rounded label reaches `threshold` as
    good. `fitted_on` names the scores and labels; `labels` counts them by rounded label.
    """

    method: Method
    low: float
    high: float
    curves: dict[int, IsotonicCurve | PlattCurve]
    cuts: dict[int, float | None]
    threshold: float
    table: list[ThresholdRow]
    fitted_on: str
    documents: int
    labels: dict[int, int]

    def probability(self, scores: NDArray[Any], threshold: int) -> Array:
        """The probability that the label, rounded, reaches `threshold`; NaN where the score is.

        It never rises with the threshold: where curves cross, the lower one counts.

        Raises:
            InputError: too few labels for a curve at this threshold.
        """
        if threshold not in self.curves:
            raise InputError(
                f"the calibration has no probability of reaching {threshold}: fewer than {MIN_EACH_SIDE} of its "
                f"{self.documents:,} labels reach or miss it; use one of {', '.join(map(str, self.curves))}"
            )
        lowest: Array = np.min([curve(scores) for k, curve in self.curves.items() if k <= threshold], axis=0)
        return lowest

    def integer_scores(self, scores: NDArray[Any]) -> NDArray[np.int64]:
        """int_score of scores (not NaN): the highest k whose cut they reach, in the score range."""
        cuts = np.array([cut for cut in self.cuts.values() if cut is not None])
        reached: NDArray[np.int64] = min(self.cuts) - 1 + np.searchsorted(cuts, scores, side="right")
        return reached


def fit_calibration(
    scores: NDArray[Any],
    labels: NDArray[Any],
    criterion: Criterion,
    *,
    fitted_on: str,
    method: Method = "isotonic",
    tokens: NDArray[Any] | None = None,
    resampling: Resampling | None = None,
) -> Calibration | None:
    """Fit the curves to the scores that a head gave to documents it was not trained on.

    Returns None, with the reason in the log, if there are fewer than `MIN_LABELS` documents, or no whole score that
    `MIN_EACH_SIDE` labels reach and as many miss.

    Args:
        scores: [documents]; NaN: no score, left out.
        labels: [documents], in the range of the criterion.
        criterion: a document counts as good when its rounded label reaches the threshold.
        fitted_on: what these scores and labels are, for people.
        method: isotonic follows any rising relation, platt is steadier on a few hundred labels.
        tokens: of each document [documents], for the share of tokens that a threshold keeps.
        resampling: for the intervals of the table.
    """
    low, high, threshold = criterion.low, criterion.high, criterion.threshold
    scored = np.isfinite(scores)
    scores, labels = np.asarray(scores[scored], np.float64), integer_scores(labels[scored], low, high)
    tokens = None if tokens is None else tokens[scored]
    int_scores = whole_scores(low, high)
    with_curve = _with_enough_labels(labels, int_scores)
    if len(scores) < MIN_LABELS or not with_curve:
        reason = (
            f"{len(scores)} labelled documents; at least {MIN_LABELS} are required"
            if len(scores) < MIN_LABELS
            else f"no whole score has {MIN_EACH_SIDE} labels that reach it and {MIN_EACH_SIDE} that do not"
        )
        logger.warning(f"No calibration: {reason}. int_score is the score rounded")
        return None
    fit = _fit_isotonic if method == "isotonic" else _fit_platt
    calibration = Calibration(
        method=method,
        low=low,
        high=high,
        curves={k: fit(scores, labels >= k) for k in with_curve},
        cuts={},
        threshold=threshold,
        table=threshold_table(scores, labels >= threshold, criterion, tokens=tokens, resampling=resampling),
        fitted_on=fitted_on,
        documents=len(scores),
        labels={int(k): int(count) for k, count in zip(*np.unique(labels, return_counts=True), strict=True)},
    )
    calibration.cuts = _cuts(calibration, int_scores[1:])
    return calibration


def can_calibrate(labels: NDArray[Any], criterion: Criterion) -> bool:
    """Whether labels [documents] are enough for `fit_calibration`."""
    rounded = integer_scores(labels, criterion.low, criterion.high)
    return len(labels) >= MIN_LABELS and bool(_with_enough_labels(rounded, whole_scores(criterion.low, criterion.high)))


def _with_enough_labels(labels: NDArray[np.int64], int_scores: range) -> list[int]:
    """The whole scores that enough labels reach and enough miss; never the lowest, which none misses."""
    return [k for k in int_scores if min((labels >= k).sum(), (labels < k).sum()) >= MIN_EACH_SIDE]


def threshold_table(
    scores: NDArray[Any],
    good: NDArray[Any],
    criterion: Criterion,
    *,
    tokens: NDArray[Any] | None = None,
    step: float = STEP,
    resampling: Resampling | None = None,
) -> list[ThresholdRow]:
    """What each threshold in the range of the criterion keeps, `step` apart, with intervals.

    `good` [documents] says whether a document is good, or how probable that is. With calibrated probabilities, the
    table predicts what the thresholds keep of a corpus without labels; the intervals then cover the draw of the
    documents, but not the uncertainty of the calibration. `resampling` None: 95% intervals from 1,000 resamples.
    """
    if not len(scores):
        return []
    resampling = resampling or Resampling()
    steps = math.floor((criterion.high - criterion.low) / step + 1e-9)
    cuts = np.asarray(criterion.low + step * np.arange(steps + 1), dtype=np.float64)
    columns = [scores, good, np.ones(len(scores)) if tokens is None else tokens]
    rows = np.stack([np.asarray(column, np.float64) for column in columns], axis=1)
    counts: dict[str, float] = {}
    for cut in cuts[1:].tolist():  # the lowest threshold keeps all documents for certain
        counts |= {f"precision@{cut}": float((rows[:, 0] >= cut).sum()), f"recall@{cut}": float(rows[:, 1].sum())}
        counts[f"documents@{cut}"] = len(rows)
    figures = resampled_figures(rows, _kept_shares(cuts), resampling, counts)
    names = ["precision", "recall", "documents"] + (["tokens"] if tokens is not None else [])
    return [ThresholdRow(score=cut, **{name: figures[f"{name}@{cut}"] for name in names}) for cut in cuts.tolist()]


def _kept_shares(cuts: Array) -> Statistic:
    """Statistic of rows (score, good, tokens): the shares of `ThresholdRow` at each cut."""

    def statistic(rows: Array, weights: Array) -> dict[str, Array]:
        scores, good, tokens = rows.T
        kept = (scores[:, None] >= cuts).astype(np.float64)
        n, kept_good, kept_tokens = (weights @ (kept * x[:, None]) for x in (np.ones(len(rows)), good, tokens))
        shares = {
            "precision": divide(kept_good, n),
            "recall": divide(kept_good, (weights @ good)[:, None]),
            "documents": n / weights.sum(axis=1, keepdims=True),
            "tokens": divide(kept_tokens, (weights @ tokens)[:, None]),
        }
        return {f"{name}@{cut}": share[:, k] for name, share in shares.items() for k, cut in enumerate(cuts.tolist())}

    return statistic


def _fit_isotonic(scores: Array, reached: NDArray[np.bool_]) -> IsotonicCurve:
    from sklearn.isotonic import IsotonicRegression

    fitted = IsotonicRegression(y_min=0, y_max=1).fit(scores, reached)
    return IsotonicCurve(scores=fitted.X_thresholds_.tolist(), probabilities=fitted.y_thresholds_.tolist())


def _fit_platt(scores: Array, reached: NDArray[np.bool_]) -> PlattCurve:
    from sklearn.linear_model import LogisticRegression

    positives, negatives = int(reached.sum()), int((~reached).sum())
    # Platt's targets are not quite 0 and 1, which keeps the slope finite where the score separates all documents.
    target = np.where(reached, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    fitted = LogisticRegression(C=np.inf).fit(
        np.tile(scores, 2)[:, None],
        np.repeat([True, False], len(scores)),
        sample_weight=np.concatenate([target, 1 - target]),
    )
    slope, intercept = float(fitted.coef_[0, 0]), float(fitted.intercept_[0])
    if slope < 0:  # the curve must not fall, so it is flat where higher scores went with worse labels
        share = target.mean()
        slope, intercept = 0.0, float(np.log(share / (1 - share)))
    return PlattCurve(slope=slope, intercept=intercept)


def _cuts(calibration: Calibration, steps: range) -> dict[int, float | None]:
    """The lowest score of each int_score: where its probability reaches one half, or where rounding puts it."""
    highest = math.inf
    cuts = {k: _lowest_score(calibration, k) for k in calibration.curves}
    for k in reversed(steps):
        below = max((cut for other, cut in cuts.items() if other < k), default=-math.inf)
        if k not in calibration.curves:
            cuts[k] = min(max(k - 0.5, below), highest)
        highest = cuts[k]
    return {k: cuts[k] if math.isfinite(cuts[k]) else None for k in steps}


def _lowest_score(calibration: Calibration, k: int) -> float:
    def reached(score: float) -> bool:
        return bool(calibration.probability(np.array(score), k) >= 0.5)

    low, high = calibration.low, calibration.high
    if not reached(high):
        return math.inf
    if reached(low):
        return low
    while low < (middle := (low + high) / 2) < high:  # until no number lies between
        low, high = (low, middle) if reached(middle) else (middle, high)
    return high
