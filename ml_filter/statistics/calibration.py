"""What a score says about the label: probabilities, whole scores, and what a threshold keeps.

For every whole score k a rising curve gives the probability that the label, rounded, reaches k. `int_score` follows:
it is at least k exactly where that probability is at least one half, so that it is the median of the label given the
score. Where the labels do not bear a curve for k, int_score >= k stands where rounding puts it.

Sources: Zadrozny and Elkan 2002 (isotonic regression); Platt 1999 (a logistic curve, fitted to smoothed targets).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from loguru import logger
from pydantic import BaseModel

from ml_filter.errors import InputError
from ml_filter.statistics.agreement import Array, Figure, Resampling, divide, resampled_figures
from ml_filter.statistics.evaluation import integer_scores, whole_scores

if TYPE_CHECKING:
    from numpy.typing import NDArray

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
    """What keeping documents from a score upwards gives: shares, the first two of good documents.

    `precision` is the share of good documents among those kept, `recall` the share of the good documents that is
    kept. `tokens` is None where the documents' tokens were not known.
    """

    score: float
    precision: Figure
    recall: Figure
    documents: Figure
    tokens: Figure | None = None


class Calibration(BaseModel):
    """How the scores of one criterion relate to its labels.

    `curves` and `cuts` go by whole score k: the probability that the label reaches k, and the lowest score whose
    int_score is k or more (None: no score's). `table` counts documents whose rounded label reaches `threshold` as
    good. `fitted_on` says on what scores and labels all this rests, `labels` counts them by rounded label.
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
        """The probability that the label, rounded, reaches `threshold`; nan where the score is.

        It never rises with the threshold: curves that cross give way to the lower one.

        Raises:
            InputError: the labels bore no curve for it.
        """
        if threshold not in self.curves:
            raise InputError(
                f"the calibration has no probability of reaching {threshold}: fewer than {MIN_EACH_SIDE} of its "
                f"{self.documents:,} labels reach or miss that; it has those of {', '.join(map(str, self.curves))}"
            )
        lowest: Array = np.min([curve(scores) for k, curve in self.curves.items() if k <= threshold], axis=0)
        return lowest

    def integer_scores(self, scores: NDArray[Any]) -> NDArray[np.int64]:
        """int_score of scores (not nan): the highest k whose cut they reach, in the score range."""
        reached = [cut for cut in self.cuts.values() if cut is not None]
        found: NDArray[np.int64] = min(self.cuts) - 1 + np.searchsorted(np.array(reached), scores, side="right")
        return found


def fit_calibration(
    scores: NDArray[Any],
    labels: NDArray[Any],
    *,
    low: float,
    high: float,
    threshold: float,
    fitted_on: str,
    method: Method = "isotonic",
    tokens: NDArray[Any] | None = None,
    how: Resampling | None = None,
) -> Calibration | None:
    """Fit the curves to scores that the head gave to documents that it did not learn from.

    Args:
        scores: [documents]; nan: none, left out.
        labels: [documents], in the range `low` to `high`.
        low: the lowest score.
        high: the highest score.
        threshold: a document counts as good when its rounded label reaches it.
        fitted_on: what these scores and labels are, for people.
        method: isotonic follows any rising relation, platt is steadier on a few hundred labels.
        tokens: of each document [documents], for the share of tokens that a threshold keeps.
        how: of the resampling for the intervals of the table.

    Returns:
        None, and the reason in the log, where there are fewer than `MIN_LABELS` documents, or no whole score that
        `MIN_EACH_SIDE` labels reach and as many miss: a calibration would be invented.
    """
    scored = np.isfinite(scores)
    scores, labels = np.asarray(scores[scored], np.float64), integer_scores(labels[scored], low, high)
    whole = whole_scores(low, high)[1:]
    borne = _borne(labels, whole)
    if len(scores) < MIN_LABELS or not borne:
        reason = (
            f"{len(scores)} labelled documents, at least {MIN_LABELS} are needed"
            if len(scores) < MIN_LABELS
            else f"no whole score has {MIN_EACH_SIDE} labels that reach it and {MIN_EACH_SIDE} that do not"
        )
        logger.warning(f"No calibration: {reason}. int_score is the score rounded")
        return None
    fit = _fit_isotonic if method == "isotonic" else _fit_platt
    made = Calibration(
        method=method,
        low=low,
        high=high,
        curves={k: fit(scores, labels >= k) for k in borne},
        cuts={},
        threshold=threshold,
        table=threshold_table(
            scores, labels >= threshold, low=low, high=high, tokens=None if tokens is None else tokens[scored], how=how
        ),
        fitted_on=fitted_on,
        documents=len(scores),
        labels={int(name): int(count) for name, count in zip(*np.unique(labels, return_counts=True), strict=True)},
    )
    made.cuts = _cuts(made, whole)
    return made


def bear_calibration(labels: NDArray[Any], low: float, high: float) -> bool:
    """Whether labels [documents] are enough for `fit_calibration` to give a calibration."""
    borne = _borne(integer_scores(labels, low, high), whole_scores(low, high)[1:])
    return len(labels) >= MIN_LABELS and bool(borne)


def _borne(labels: NDArray[np.int64], whole: range) -> list[int]:
    """The whole scores that enough labels reach and enough miss."""
    return [k for k in whole if min((labels >= k).sum(), (labels < k).sum()) >= MIN_EACH_SIDE]


def threshold_table(
    scores: NDArray[Any],
    good: NDArray[Any],
    *,
    low: float,
    high: float,
    tokens: NDArray[Any] | None = None,
    step: float = STEP,
    how: Resampling | None = None,
) -> list[ThresholdRow]:
    """What each threshold on the score keeps, with bootstrap intervals over documents.

    With calibrated probabilities for `good` it tells what to expect of a corpus without labels; the intervals then
    hold the draw of its documents, not how sure the calibration is.

    Args:
        scores: [documents].
        good: [documents], whether a document is good, or how probable that is.
        low: the first threshold.
        high: the last threshold.
        tokens: of each document, [documents].
        step: between thresholds.
        how: of the resampling.
    """
    cuts = np.asarray(low + step * np.arange(math.floor((high - low) / step + 1e-9) + 1), dtype=np.float64)
    columns = [scores, good, np.ones(len(scores)) if tokens is None else tokens]
    rows = np.stack([np.asarray(column, np.float64) for column in columns], axis=1)
    how = how or Resampling()
    figures = resampled_figures(rows, _what_is_kept(cuts), how) if len(rows) else {}
    all_good = float(rows[:, 1].sum())
    names = ["precision", "recall", "documents"] + (["tokens"] if tokens is not None else [])
    table = []
    for cut in cuts.tolist() if figures else []:
        of: dict[str, Figure] = {name: figures[f"{name}@{cut}"] for name in names}
        kept = int((rows[:, 0] >= cut).sum())
        if cut > low:  # the lowest threshold keeps all documents, whatever they are
            of["precision"] = _without_variation(of["precision"], kept, how)
            of["recall"] = _without_variation(of["recall"], all_good, how)
            of["documents"] = _without_variation(of["documents"], len(rows), how)
        table.append(ThresholdRow(score=cut, **of))
    return table


def _without_variation(share: Figure, n: float, how: Resampling) -> Figure:
    """A share of 0 or 1 with the exact interval of Clopper and Pearson, as every resample repeats it."""
    if share.value not in (0, 1):
        return share
    bound = ((1 - how.confidence) / 2) ** (1 / n)
    low, high = (bound, 1.0) if share.value == 1 else (0.0, 1 - bound)
    return share.model_copy(update={"low": low, "high": high, "reason": None})


def _what_is_kept(cuts: Array) -> Callable[[Array, Array], dict[str, Array]]:
    def statistic(rows: Array, weights: Array) -> dict[str, Array]:
        scores, good, tokens = rows.T
        kept = (scores[:, None] >= cuts).astype(np.float64)
        n, kept_good, kept_tokens = (weights @ (kept * of[:, None]) for of in (np.ones(len(rows)), good, tokens))
        shares = {
            "precision": divide(kept_good, n),
            "recall": divide(kept_good, (weights @ good)[:, None]),
            "documents": n / weights.sum(axis=1, keepdims=True),
            "tokens": divide(kept_tokens, (weights @ tokens)[:, None]),
        }
        return {f"{name}@{cut}": of[:, k] for name, of in shares.items() for k, cut in enumerate(cuts.tolist())}

    return statistic


def _fit_isotonic(scores: Array, reached: NDArray[np.bool_]) -> IsotonicCurve:
    from sklearn.isotonic import IsotonicRegression

    fitted = IsotonicRegression(y_min=0, y_max=1).fit(scores, reached)
    return IsotonicCurve(scores=fitted.X_thresholds_.tolist(), probabilities=fitted.y_thresholds_.tolist())


def _fit_platt(scores: Array, reached: NDArray[np.bool_]) -> PlattCurve:
    from sklearn.linear_model import LogisticRegression

    positives, negatives = int(reached.sum()), int((~reached).sum())
    # Platt's targets are not quite 0 and 1, so that the slope stays finite where the score separates all documents.
    target = np.where(reached, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    fitted = LogisticRegression(C=np.inf).fit(
        np.tile(scores, 2)[:, None],
        np.repeat([True, False], len(scores)),
        sample_weight=np.concatenate([target, 1 - target]),
    )
    slope, intercept = float(fitted.coef_[0, 0]), float(fitted.intercept_[0])
    if slope < 0:  # a higher score must not mean a worse document: then it means nothing
        share = target.mean()
        slope, intercept = 0.0, float(np.log(share / (1 - share)))
    return PlattCurve(slope=slope, intercept=intercept)


def _cuts(calibration: Calibration, whole: range) -> dict[int, float | None]:
    """The lowest scores of each whole score: where its probability reaches one half, else where rounding puts it."""
    highest = math.inf
    cuts: dict[int, float] = {}
    for k in calibration.curves:
        cuts[k] = _lowest_score(calibration, k)
    for k in reversed(whole):
        below = max((cut for other, cut in cuts.items() if other < k), default=-math.inf)
        if k not in calibration.curves:
            cuts[k] = min(max(k - 0.5, below), highest)
        highest = cuts[k]
    return {k: cuts[k] if math.isfinite(cuts[k]) else None for k in whole}


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
