"""How well any number of raters agree, with intervals.

Sources: Fleiss 1971; Krippendorff, Computing Krippendorff's Alpha-Reliability, 2011; Shrout and Fleiss 1979 (ICC).
"""

from __future__ import annotations

import numpy as np
from pydantic import BaseModel

from ml_filter.statistics.intervals import (
    MIN_DOCUMENTS,
    Array,
    Figure,
    Resampling,
    divide,
    resampled_figures,
    too_few,
)
from ml_filter.statistics.metrics import GROUP_FIGURES
from ml_filter.statistics.pair import TOO_MANY_CLASSES, ScoreRange, too_many_classes
from ml_filter.statistics.rounding import round_scores

_TINY = 1e-12
"""A sum of squares below this share of the total is a rounding error."""


class GroupAgreement(BaseModel):
    """Several raters at once. Fleiss' kappa and ICC use the documents that all of them scored."""

    raters: list[str]
    figures: dict[str, Figure]


def compare_group(
    raters: list[str], scores: Array, *, score_range: ScoreRange | None, resampling: Resampling
) -> GroupAgreement:
    """Fleiss' kappa, Krippendorff's alpha and ICC of scores [documents, raters]; NaN: no score."""
    rows = scores[np.isfinite(scores).sum(axis=1) >= 2]
    complete = np.isfinite(rows).all(axis=1)
    enough_complete = complete.sum() >= MIN_DOCUMENTS
    if len(rows) < MIN_DOCUMENTS:
        return GroupAgreement(raters=raters, figures=dict.fromkeys(GROUP_FIGURES, too_few(len(rows))))
    figures = dict.fromkeys(GROUP_FIGURES, too_few(int(complete.sum())))
    figures |= resampled_figures(rows, alpha_interval, resampling)
    if enough_complete:
        figures |= resampled_figures(rows[complete], intraclass_correlations, resampling)
    rounded = round_scores(rows, *(score_range or ()))
    classes = np.unique(rounded[np.isfinite(rounded)])
    if too_many_classes(classes):
        undefined = Figure(value=None, documents=len(rows), reason=TOO_MANY_CLASSES)
        figures |= dict.fromkeys(("fleiss_kappa", "alpha_nominal", "alpha_ordinal"), undefined)
    else:
        counts = class_counts(rounded, classes)
        figures |= resampled_figures(counts, alpha_of_classes, resampling)
        if enough_complete:
            figures |= resampled_figures(counts[complete], fleiss_kappa, resampling)
    return GroupAgreement(raters=raters, figures=figures)


def class_counts(rounded: Array, classes: Array) -> Array:
    """How many raters gave each document each class, [documents, classes]."""
    counts: Array = (rounded[:, :, None] == classes[None, None, :]).sum(axis=1).astype(np.float64)
    return counts


def fleiss_kappa(counts: Array, weights: Array) -> dict[str, Array]:
    """Fleiss' kappa of class counts, the same number of raters in each row."""
    raters = counts[:1].sum(axis=1)
    n = weights.sum(axis=1)
    observed = weights @ ((counts * counts).sum(axis=1) - raters) / (n * raters * (raters - 1))
    shares = weights @ counts / (n * raters)[:, None]
    chance = (shares * shares).sum(axis=1)
    return {"fleiss_kappa": 1 - divide(1 - observed, np.where(chance >= 1 - _TINY, 0, 1 - chance))}


def alpha_of_classes(counts: Array, weights: Array) -> dict[str, Array]:
    """Krippendorff's alpha of class counts, nominal and ordinal."""
    size = counts.shape[1]
    pairs = (counts[:, :, None] * counts[:, None, :] - np.eye(size) * counts[:, :, None]) / (
        counts.sum(axis=1)[:, None, None] - 1
    )
    coincidences = (weights @ pairs.reshape(len(counts), -1)).reshape(-1, size, size)
    totals = coincidences.sum(axis=2)
    n = totals.sum(axis=1)
    middle = np.cumsum(totals, axis=1) - totals / 2
    ordinal = (middle[:, :, None] - middle[:, None, :]) ** 2
    figures = {}
    for name, distance in (("alpha_nominal", 1 - np.eye(size)[None]), ("alpha_ordinal", ordinal)):
        observed = (coincidences * distance).sum(axis=(1, 2))
        chance = (totals[:, :, None] * totals[:, None, :] * distance).sum(axis=(1, 2)) / (n - 1)
        figures[name] = 1 - divide(observed, chance)
    return figures


def alpha_interval(rows: Array, weights: Array) -> dict[str, Array]:
    """Krippendorff's alpha of scores [U, raters] on an interval scale."""
    # With squared differences, sums over pairs are sums of values and of their squares.
    values = np.nan_to_num(rows - np.nanmean(rows))
    ratings = np.isfinite(rows).sum(axis=1)
    sums, squares = values.sum(axis=1), (values * values).sum(axis=1)
    n, total, total_squares = weights @ ratings, weights @ sums, weights @ squares
    observed = weights @ ((ratings * squares - sums * sums) / (ratings - 1)) / n
    chance = (n * total_squares - total * total) / (n * (n - 1))
    return {"alpha_interval": 1 - divide(observed, np.where(chance <= _TINY * total_squares / n, 0, chance))}


def intraclass_correlations(rows: Array, weights: Array) -> dict[str, Array]:
    """The six ICC of complete scores [U, raters], from the two-way analysis of variance.

    Names and formulas as in Shrout and Fleiss 1979: mean squares between documents (bms), within documents (wms),
    between raters (jms) and of the residual (ems).
    """
    values = rows - rows.mean()
    n, k = weights.sum(axis=1), rows.shape[1]
    by_document, by_rater = values.sum(axis=1), weights @ values
    squares = weights @ (values * values).sum(axis=1)
    correction = by_rater.sum(axis=1) ** 2 / (n * k)
    total = squares - correction
    documents = weights @ (by_document**2) / k - correction
    raters = (by_rater**2).sum(axis=1) / n - correction
    total, documents, raters = (np.where(s <= _TINY * squares, 0, s) for s in (total, documents, raters))
    residual = total - documents - raters
    residual = np.where(residual <= _TINY * squares, 0, residual)
    bms, wms = documents / (n - 1), (total - documents) / (n * (k - 1))
    jms, ems = raters / (k - 1), residual / ((n - 1) * (k - 1))
    return {
        "icc_1_1": divide(bms - wms, bms + (k - 1) * wms),
        "icc_2_1": divide(bms - ems, bms + (k - 1) * ems + k * (jms - ems) / n),
        "icc_3_1": divide(bms - ems, bms + (k - 1) * ems),
        "icc_1_k": divide(bms - wms, bms),
        "icc_2_k": divide(bms - ems, bms + (jms - ems) / n),
        "icc_3_k": divide(bms - ems, bms),
    }
