"""Ridge regression on embeddings on disk; its memory does not grow with their number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray

from ml_filter.heads.embeddings import Embeddings
from ml_filter.statistics.intervals import Array

Rows = NDArray[np.float32] | Embeddings
"""Features [n, width] that are read in parts: an array, a memory map, or rows of an embedding store."""
ALPHAS = tuple(float(a) for a in np.logspace(0, 5, 16))
SELECT_ON = 10_000
_ROWS = 4096


def fit_ridge(
    features: Rows,
    labels: Array,
    weights: Array,
    *,
    seed: int,
    standardise: bool = True,
    alphas: Sequence[float] = ALPHAS,
) -> tuple[Array, float, float]:
    """Fit labels [n] to features [n, width] with document weights [n] of mean 1.

    Returns coefficients [width], bias and the chosen penalty. The penalty minimises the exact leave-one-out error of
    scikit-learn's RidgeCV, which needs no folds and so no random split. RidgeCV needs all features in memory:
    it sees at most 10,000 documents, and its penalty is scaled to the number of all documents. The coefficients are the
    solution of the normal equations over all documents, summed block by block.
    """
    from scipy.linalg import solve
    from sklearn.linear_model import RidgeCV

    count, width = features.shape
    mean, scale = mean_and_scale(features) if standardise else (np.zeros(width), np.ones(width))
    chosen = np.sort(np.random.default_rng(seed).permutation(count)[:SELECT_ON])
    search = RidgeCV(alphas=alphas).fit((features[chosen] - mean) / scale, labels[chosen], weights[chosen])
    alpha = float(search.alpha_) * count / len(chosen)

    # The bias is the coefficient of a constant feature without penalty.
    gram, moment = np.zeros((width + 1, width + 1)), np.zeros(width + 1)
    for start in range(0, count, _ROWS):
        part = slice(start, start + _ROWS)
        block = np.column_stack([(features[part] - mean) / scale, np.ones(len(labels[part]))])
        gram += block.T @ (block * weights[part, None])
        moment += block.T @ (labels[part] * weights[part])
    gram[np.diag_indices(width)] += alpha
    solution = solve(gram, moment, assume_a="pos")
    coefficients = solution[:-1] / scale
    return coefficients, float(solution[-1] - coefficients @ mean), alpha


def mean_and_scale(features: Rows) -> tuple[Array, Array]:
    """Mean and standard deviation [width] of each feature; a deviation of 0 becomes 1."""
    count, width = features.shape
    total, squares = np.zeros(width), np.zeros(width)
    for start in range(0, count, _ROWS):
        block = features[start : start + _ROWS].astype(np.float64)
        total += block.sum(0)
        squares += np.square(block).sum(0)
    mean = total / count
    scale = np.sqrt(np.maximum(squares / count - mean**2, 0))
    scale[scale < 1e-8] = 1.0
    return mean, scale


def label_weights(labels: Array, balance: float) -> Array:
    """Weights [n] of mean 1: the frequency of each rounded label to the power of `-balance`."""
    _, label_class, counts = np.unique(np.round(labels), return_inverse=True, return_counts=True)
    weights = counts[label_class].astype(np.float64) ** -balance
    return cast("Array", weights / weights.mean())
