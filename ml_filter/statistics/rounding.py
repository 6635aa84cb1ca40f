"""Whole scores: how scores are rounded, and which whole scores a range has."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROUNDING_VARIANCE = 1 / 12
"""Variance of the error of a score that was rounded to a whole one (uniform over one point). The spread of votes is
never taken as less."""


def round_scores(scores: NDArray[Any], low: float = -math.inf, high: float = math.inf) -> NDArray[np.float64]:
    """Scores clamped to the range and rounded to whole numbers, halves upwards; NaN stays NaN.

    Halves go upwards (numpy rounds them to even numbers) so that int_score >= 3 always means score >= 2.5.
    """
    rounded: NDArray[np.float64] = np.floor(np.clip(np.asarray(scores, np.float64), low, high) + 0.5)
    return rounded


def integer_scores(scores: NDArray[Any], low: float, high: float) -> NDArray[np.int64]:
    """`round_scores` of scores without NaN, as integers."""
    return round_scores(scores, low, high).astype(np.int64)


def whole_scores(low: float, high: float) -> range:
    """The whole scores of a range, as `integer_scores` gives them."""
    return range(math.floor(low + 0.5), math.floor(high + 0.5) + 1)
