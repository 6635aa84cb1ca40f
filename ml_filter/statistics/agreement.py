"""How well two raters, or any number of raters, agree, with intervals.

Sources: Fleiss 1971; Krippendorff, Computing Krippendorff's Alpha-Reliability, 2011; Shrout and Fleiss 1979 (ICC).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from ml_filter.statistics.intervals import (
    MIN_DOCUMENTS,
    Array,
    Figure,
    Resampling,
    Statistic,
    divide,
    resampled_figures,
    too_few,
)
from ml_filter.statistics.metrics import GROUP_FIGURES, PAIR_FIGURES, TABLE_FIGURES
from ml_filter.statistics.rounding import round_scores
from ml_filter.statistics.weighted import (
    TINY,
    at_threshold,
    kendall,
    kendall_by_scipy,
    rank_and_distance,
    shares_at_threshold,
    table_statistic,
)

ScoreRange = tuple[float, float]
MAX_CLASSES = 21
"""Scales with more classes than one from 0 to 20 have no table of classes."""
TOO_MANY_CLASSES = f"scores span more than {MAX_CLASSES} whole numbers"
_KENDALL_ROWS, _KENDALL_RESAMPLES = 1000, 200
"""Above this many distinct pairs of scores, Kendall's tau-b is resampled by scipy, and less often."""


class ClassAgreement(BaseModel):
    """One class: precision, recall and F1 of the rater against the reference, and how often each gave it."""

    precision: Figure
    recall: Figure
    f1: Figure
    reference: int
    rater: int


class PairAgreement(BaseModel):
    """A rater against a reference, over the documents that both scored.

    `confusion` counts documents by class of the reference (rows) and of the rater (columns), in the order of
    `classes`.
    """

    reference: str
    rater: str
    documents: int
    figures: dict[str, Figure]
    classes: dict[int, ClassAgreement]
    confusion: list[list[int]]


def compare_pair(
    reference: str,
    rater: str,
    scores: Array,
    *,
    score_range: ScoreRange | None,
    threshold: float,
    resampling: Resampling,
) -> PairAgreement:
    """All figures of two raters, from their scores [documents, 2], the reference first; NaN: no score.

    Classes are clamped to `score_range`, if it is known. A rounded score at `threshold` or above counts as good.
    """
    rows = scores[np.isfinite(scores).all(axis=1)]
    rounded = round_scores(rows, *(score_range or ()))
    figures, classes = pair_figures(rows, rounded, threshold, resampling)
    if len(rows) >= MIN_DOCUMENTS:
        figures |= _kendall_figure(rows, resampling)
    return PairAgreement(
        reference=reference,
        rater=rater,
        documents=len(rows),
        figures={name: figures[name] for name in PAIR_FIGURES},
        classes=classes,
        confusion=confusion_table(rounded, np.array(list(classes))).tolist() if classes else [],
    )


def pair_figures(
    scores: Array, rounded: Array, threshold: float, resampling: Resampling
) -> tuple[dict[str, Figure], dict[int, ClassAgreement]]:
    """Figures of a rater against a reference, overall and by class, without Kendall's.

    Rank and distance figures are of the scores, the others of the rounded scores, [documents, 2] each.

    With a third column, these are its figures minus those of the second, not by class. Their intervals are paired: both
    figures come from the same resamples, so that errors which the two raters share do not widen the interval.
    """
    if len(scores) < MIN_DOCUMENTS:
        return dict.fromkeys(PAIR_FIGURES, too_few(len(scores))), {}
    differs = scores.shape[1] == 3
    statistic_of = _difference if differs else lambda statistic: statistic
    good = (rounded >= threshold).astype(np.float64)
    figures = resampled_figures(scores, statistic_of(rank_and_distance), resampling)
    shares = None if differs else shares_at_threshold(good)
    figures |= resampled_figures(good, statistic_of(at_threshold), resampling, shares)
    classes = np.unique(rounded)
    if too_many_classes(classes):
        undefined = Figure(value=None, documents=len(scores), reason=TOO_MANY_CLASSES)
        return figures | dict.fromkeys(TABLE_FIGURES, undefined), {}
    shares = None if differs else _shares_by_class(rounded, classes)
    figures |= resampled_figures(rounded, statistic_of(table_statistic(classes)), resampling, shares)
    return figures, {} if differs else {int(k): _class_agreement(int(k), rounded, figures) for k in classes}


def too_many_classes(classes: Array) -> bool:
    """Whether classes, in rising order, span too many whole numbers for a table."""
    return bool(classes[-1] - classes[0] >= MAX_CLASSES)


def confusion_table(rounded: NDArray[Any], classes: NDArray[Any]) -> NDArray[np.int64]:
    """Documents by class of the reference (rows) and of the rater (columns), from classes [documents, 2]."""
    table = np.zeros((len(classes), len(classes)), dtype=np.int64)
    np.add.at(table, tuple(np.searchsorted(classes, rounded).T), 1)
    return table


def _class_agreement(k: int, rounded: Array, figures: dict[str, Figure]) -> ClassAgreement:
    reference, rater = (rounded == k).sum(axis=0).tolist()
    precision, recall, f1 = (figures[f"{name}@{k}"] for name in ("precision", "recall", "f1"))
    return ClassAgreement(precision=precision, recall=recall, f1=f1, reference=reference, rater=rater)


def _kendall_figure(rows: Array, resampling: Resampling) -> dict[str, Figure]:
    if len(np.unique(rows, axis=0)) <= _KENDALL_ROWS:
        return resampled_figures(rows, kendall, resampling)
    fewer = resampling.model_copy(update={"resamples": min(resampling.resamples, _KENDALL_RESAMPLES)})
    return resampled_figures(rows, kendall_by_scipy, fewer)


def _shares_by_class(rounded: Array, classes: Array) -> dict[str, int]:
    shares = {"exact_agreement": len(rounded)}
    for k in classes:
        of_class = shares_at_threshold((rounded == k).astype(np.float64))
        shares |= {f"{name}@{int(k)}": of_class[f"{name}_at_threshold"] for name in ("precision", "recall", "f1")}
    return shares


def _difference(statistic: Statistic) -> Statistic:
    """The statistic of (reference, second rater) minus that of (reference, first rater)."""

    def against_reference(column: int, rows: Array, weights: Array) -> dict[str, Array]:
        pairs, pair_of = np.unique(rows[:, [0, column]], axis=0, return_inverse=True)
        weights_of_pairs = np.zeros((len(pairs), len(weights)))
        np.add.at(weights_of_pairs, pair_of, weights.T)
        return statistic(pairs, weights_of_pairs.T)

    def difference(rows: Array, weights: Array) -> dict[str, Array]:
        first, second = against_reference(1, rows, weights), against_reference(2, rows, weights)
        return {name: second[name] - first[name] for name in first}

    return difference


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
    return {"fleiss_kappa": 1 - divide(1 - observed, np.where(chance >= 1 - TINY, 0, 1 - chance))}


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
    return {"alpha_interval": 1 - divide(observed, np.where(chance <= TINY * total_squares / n, 0, chance))}


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
    total, documents, raters = (np.where(s <= TINY * squares, 0, s) for s in (total, documents, raters))
    residual = total - documents - raters
    residual = np.where(residual <= TINY * squares, 0, residual)
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
