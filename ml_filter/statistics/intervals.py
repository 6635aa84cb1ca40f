"""Exact intervals of a share.

Source: Clopper and Pearson 1934.
"""

from __future__ import annotations


def exact_upper_bound(count: float, total: float, confidence: float) -> float:
    """One-sided upper bound of a share of which `count` of `total` were observed; 1 where all were.

    Counts may be fractional, such as the expected number of good documents.
    """
    from scipy.stats import beta

    return 1.0 if count >= total else float(beta.ppf(confidence, count + 1, total - count))


def exact_interval(count: float, total: float, confidence: float) -> tuple[float, float]:
    """Two-sided interval of a share; each side leaves out half of what `confidence` leaves out."""
    one_sided = (1 + confidence) / 2
    return 1 - exact_upper_bound(total - count, total, one_sided), exact_upper_bound(count, total, one_sided)
