"""Ridge regression on embeddings that lie on disk, in memory that does not grow with their number."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

ALPHAS = tuple(float(a) for a in np.logspace(0, 5, 16))
SELECT_ON = 10_000
_ROWS = 4096


def fit_ridge(
    embeddings: NDArray[np.float32], labels: NDArray[np.float64], weights: NDArray[np.float64], *, seed: int
) -> tuple[NDArray[np.float64], float, float]:
    """Fit labels [n] from embeddings [n, width] under document weights [n] of mean 1.

    Returns coefficients [width], bias and the chosen penalty. Features are standardised. The penalty minimises the
    exact leave-one-out error (scikit-learn's RidgeCV) on at most 10,000 documents, and grows with the number of
    documents; the coefficients are then solved from the normal equations over all of them, block by block.
    """
    from scipy.linalg import solve
    from sklearn.linear_model import RidgeCV

    count, width = embeddings.shape
    total, squares = np.zeros(width), np.zeros(width)
    for start in range(0, count, _ROWS):
        block = embeddings[start : start + _ROWS].astype(np.float64)
        total += block.sum(0)
        squares += np.square(block).sum(0)
    mean = total / count
    scale = np.sqrt(np.maximum(squares / count - mean**2, 0))
    scale[scale < 1e-8] = 1.0

    chosen = np.sort(np.random.default_rng(seed).permutation(count)[:SELECT_ON])
    search = RidgeCV(alphas=ALPHAS).fit(
        (embeddings[chosen] - mean) / scale, labels[chosen], sample_weight=weights[chosen]
    )
    alpha = float(search.alpha_) * count / len(chosen)

    # A constant feature of its own, without penalty, is the bias.
    gram, moment = np.zeros((width + 1, width + 1)), np.zeros(width + 1)
    for start in range(0, count, _ROWS):
        part = slice(start, start + _ROWS)
        standard = np.column_stack([(embeddings[part] - mean) / scale, np.ones(len(labels[part]))])
        gram += standard.T @ (standard * weights[part, None])
        moment += standard.T @ (labels[part] * weights[part])
    gram[np.diag_indices(width)] += alpha
    solution = solve(gram, moment, assume_a="pos")
    coefficients = solution[:-1] / scale
    return coefficients, float(solution[-1] - coefficients @ mean), alpha


def label_weights(labels: NDArray[np.float64], balance: float) -> NDArray[np.float64]:
    """Weights [n] of mean 1: the frequency of each rounded label to the power of `-balance`."""
    _, place, counts = np.unique(np.round(labels), return_inverse=True, return_counts=True)
    weights = counts[place].astype(np.float64) ** -balance
    return cast("NDArray[np.float64]", weights / weights.mean())
