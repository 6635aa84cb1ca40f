"""Figures of two raters as statistics of weighted rows (see `intervals`).

Rows are (reference, rater). Every function takes U rows and how often each occurs in B resamples, weights [B, U], and
returns figures [B] by name; NaN: undefined.

Sources: Cohen 1960, 1968 (kappa, weighted kappa); Kendall 1945 (tau-b).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ml_filter.statistics.intervals import Array, Statistic, divide

TINY = 1e-12
"""A variance or sum of squares below this share of the total is a rounding error."""


def rank_and_distance(rows: Array, weights: Array) -> dict[str, Array]:
    """Correlations, errors and the mean difference."""
    x, y = rows[:, 0], rows[:, 1]
    n = weights.sum(axis=1)
    return {
        "spearman": _correlation(_ranks(x, weights), _ranks(y, weights), weights),
        "pearson": _correlation(x[None] - x.mean(), y[None] - y.mean(), weights),
        "mae": weights @ np.abs(y - x) / n,
        "mse": weights @ (y - x) ** 2 / n,
        "mean_difference": weights @ (y - x) / n,
    }


def _ranks(values: Array, weights: Array) -> Array:
    """Ranks [B, U] counted from the middle; ties share their mean rank."""
    order = np.argsort(values, kind="stable")
    starts = np.flatnonzero(np.diff(values[order], prepend=-np.inf))
    ties = np.add.reduceat(weights[:, order], starts, axis=1)
    middle = np.cumsum(ties, axis=1) - ties / 2 - weights.sum(axis=1, keepdims=True) / 2
    tie_of = np.empty(len(values), dtype=np.intp)
    tie_of[order] = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(values)))
    ranks: Array = middle[:, tie_of]
    return ranks


def _correlation(x: Array, y: Array, weights: Array) -> Array:
    n = weights.sum(axis=1)
    sx, sy = (weights * x).sum(axis=1), (weights * y).sum(axis=1)
    xx, yy = (weights * x * x).sum(axis=1), (weights * y * y).sum(axis=1)
    vx, vy = xx - sx * sx / n, yy - sy * sy / n
    constant = (vx <= TINY * xx) | (vy <= TINY * yy)
    return divide((weights * x * y).sum(axis=1) - sx * sy / n, np.sqrt(np.where(constant, 0, vx * vy)))


def kendall(rows: Array, weights: Array) -> dict[str, Array]:
    """Kendall's tau-b over all pairs of rows; memory grows with the square of the rows."""
    sx, sy = (np.sign(rows[:, None, k] - rows[None, :, k]) for k in (0, 1))
    agree, untied_x, untied_y = (((weights @ s) * weights).sum(axis=1) for s in (sx * sy, np.abs(sx), np.abs(sy)))
    return {"kendall": divide(agree, np.sqrt(untied_x * untied_y))}


def kendall_by_scipy(rows: Array, weights: Array) -> dict[str, Array]:
    """The same resample by resample, for rows too many for all pairs of them."""
    from scipy.stats import kendalltau

    drawn = (np.repeat(rows, times.astype(np.int64), axis=0) for times in weights)
    return {"kendall": np.array([kendalltau(pairs[:, 0], pairs[:, 1]).statistic for pairs in drawn])}


def at_threshold(rows: Array, weights: Array) -> dict[str, Array]:
    """Figures of a decision, of rows of 1 for good and 0 for the rest."""
    actual, predicted = rows[:, 0], rows[:, 1]
    n = weights.sum(axis=1)
    hits, n_actual, n_predicted = weights @ (actual * predicted), weights @ actual, weights @ predicted
    rejected = weights @ ((1 - actual) * (1 - predicted))
    precision, recall, f1 = precision_recall_f1(hits, n_actual, n_predicted)
    f1_of_the_rest = precision_recall_f1(rejected, n - n_actual, n - n_predicted)[2]
    return {
        "agreement_at_threshold": weights @ (actual == predicted) / n,
        "precision_at_threshold": precision,
        "recall_at_threshold": recall,
        "f1_at_threshold": f1,
        "macro_f1_at_threshold": _mean_of_defined(np.stack([f1, f1_of_the_rest], axis=1)),
    }


def shares_at_threshold(rows: Array) -> dict[str, int]:
    """Of how many rows each figure of `at_threshold` is a share, for `resampled_figures`."""
    actual, predicted = rows.sum(axis=0).astype(int).tolist()
    shares = {"agreement": len(rows), "precision": predicted, "recall": actual, "f1": int(rows.any(axis=1).sum())}
    return {f"{name}_at_threshold": count for name, count in shares.items()}


def precision_recall_f1(
    hits: NDArray[Any], actual: NDArray[Any], predicted: NDArray[Any]
) -> tuple[Array, Array, Array]:
    """From counts of documents: correctly predicted, actual, and predicted."""
    return divide(hits, predicted), divide(hits, actual), divide(2 * hits, actual + predicted)


def table_statistic(classes: Array) -> Statistic:
    """Statistic of distinct rows of classes: kappas, exact agreement, and precision, recall and F1 of each class.

    `classes` are the whole scores that the rows may hold, in rising order.
    """
    size = len(classes)
    distance = np.abs(classes[:, None] - classes[None, :])
    penalties = {"kappa": (distance > 0).astype(np.float64), "kappa_linear": distance, "kappa_quadratic": distance**2}

    def statistic(rows: Array, weights: Array) -> dict[str, Array]:
        cells = np.searchsorted(classes, rows[:, 0]) * size + np.searchsorted(classes, rows[:, 1])
        flat = np.zeros((len(weights), size * size))
        flat[:, cells] = weights  # rows are distinct, so are cells
        table = flat.reshape(-1, size, size)
        n, actual, predicted = table.sum(axis=(1, 2)), table.sum(axis=2), table.sum(axis=1)
        chance = actual[:, :, None] * predicted[:, None, :] / n[:, None, None]
        figures = {
            name: 1 - divide((table * penalty).sum(axis=(1, 2)), (chance * penalty).sum(axis=(1, 2)))
            for name, penalty in penalties.items()
        }
        hits = np.diagonal(table, axis1=1, axis2=2)
        precision, recall, f1 = precision_recall_f1(hits, actual, predicted)
        figures["exact_agreement"] = hits.sum(axis=1) / n
        figures["macro_f1"] = _mean_of_defined(f1)
        for k, name in enumerate(classes.astype(int)):
            figures |= {f"precision@{name}": precision[:, k], f"recall@{name}": recall[:, k], f"f1@{name}": f1[:, k]}
        return figures

    return statistic


def ranking(scores: Array, good: Array, weights: Array) -> dict[str, Array]:
    """The area under the ROC curve and the average precision [B] of rising scores [U] with weights [B, U]."""
    starts = np.flatnonzero(np.diff(scores, prepend=-np.inf))
    goods, rest = (np.add.reduceat(weights * side, starts, axis=1) for side in (good, 1 - good))
    all_good, all_rest = goods.sum(axis=1), rest.sum(axis=1)
    lower = np.cumsum(rest, axis=1) - rest / 2  # a tie is half in order
    kept_good, kept = (np.cumsum(side[:, ::-1], axis=1)[:, ::-1] for side in (goods, goods + rest))
    one_sided = (all_good == 0) | (all_rest == 0)
    average = divide(np.nansum(goods * divide(kept_good, kept), axis=1), all_good)
    return {
        "roc_auc": divide((goods * lower).sum(axis=1), all_good * all_rest),
        "average_precision": np.where(one_sided, np.nan, average),
    }


def _mean_of_defined(figures: Array) -> Array:
    """The mean over columns [B, columns] that are not NaN; one column always is."""
    mean: Array = np.nansum(figures, axis=1) / np.isfinite(figures).sum(axis=1)
    return mean
