"""Ridge regression on sparse TF-IDF features, with all penalties solved at once.

scikit-learn's RidgeCV needs dense features, and its sparse solvers must run once for each penalty and fold: on 1,000
documents its `sparse_cg` took 19 s and `lsqr` 54 s where this takes 2 s, and scores differed by at most 0.0002.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ml_filter.statistics.intervals import Array

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

ALPHAS = np.logspace(-2, 3, 21)
KRYLOV_STEPS = 40
FOLDS = 5
ONE_FOLD_ABOVE = 10_000
_BLOCK_ROWS = 4096


@dataclass(frozen=True)
class SparseRidge:
    """A regression on hashed features: a score is `values * idf / length @ coefficients + bias`."""

    idf: NDArray[np.float32]
    coefficients: NDArray[np.float32]
    bias: float
    alpha: float


def fit_sparse_ridge(features: csr_matrix, labels: Array, weights: Array, *, seed: int) -> SparseRidge:
    """Ridge regression of labels [n] on TF-IDF of hashed features [n, features] under document weights [n].

    Documents of weight 0 are ignored, whatever their label, so that folds need no copies of the features. The penalty
    is the one with the best correlation on held-out documents (five folds; one of them above 10,000 documents). Most
    features of an unseen document are new to the regression, so that its scores are too close together: they are
    stretched by the slope of the labels on the held-out scores.

    All penalties are solved at once by 40 steps of the Lanczos method on the documents' inner products (Golub and Van
    Loan 2013, section 10.1). This is exact for up to 40 documents; on 1,000, scores were within 0.0003 of the exact
    ones after 20 steps. A step is two passes over the features and needs 4 bytes of memory per document.
    """
    used = np.flatnonzero(weights > 0)
    order = np.random.default_rng(seed).permutation(len(used))
    fold = np.full(len(weights), -1)
    fold[used[order]] = np.arange(len(used)) % FOLDS
    held_out_scores = np.zeros((len(weights), len(ALPHAS)))
    for number in range(FOLDS if len(used) <= ONE_FOLD_ABOVE else 1):
        held = np.flatnonzero(fold == number)
        held_out_scores[held] = _Krylov(features, labels, np.where(fold == number, 0.0, weights), held).scores()
    held = np.flatnonzero((fold >= 0) & (fold < number + 1))
    mean = np.average(labels[held], weights=weights[held])
    centres = np.average(held_out_scores[held], axis=0, weights=weights[held])
    deviations = held_out_scores[held] - centres
    covariance = ((labels[held] - mean) * weights[held]) @ deviations
    variance = np.maximum(weights[held] @ deviations**2, 1e-30)
    best = int(np.argmax(covariance / np.sqrt(variance)))
    stretch = covariance[best] / variance[best] if covariance[best] > 0 else 1.0

    last = _Krylov(features, labels, weights, held=held[:0])
    coefficients, bias = last.solution(best)
    return SparseRidge(
        last.idf,
        (stretch * coefficients).astype(np.float32),
        float(mean + stretch * (bias - centres[best])),
        float(ALPHAS[best]),
    )


class _Krylov:
    """Ridge regressions with all penalties, fitted on the documents that have a weight.

    With rows z = sqrt(weight) * (x - mean x) and targets t = sqrt(weight) * (label - mean label), the coefficients are
    Z'a where (ZZ' + alpha) a = t. For every alpha, a is sought in the span of t, ZZ't, (ZZ')^2 t, ..., on whose
    orthonormal basis ZZ' is tridiagonal.
    """

    def __init__(self, features: csr_matrix, labels: Array, weights: Array, held: NDArray[np.int64]) -> None:
        used = weights > 0
        self.features, self.transposed = features, features.T
        self.idf = _inverse_frequencies(features, used)
        self.squares = self.idf**2
        self.lengths = document_lengths(features, self.idf)
        self.shares = weights / weights.sum()
        self.roots = np.sqrt(weights)
        self.mean = float(self.shares[used] @ labels[used])
        target = np.zeros(len(labels))
        target[used] = self.roots[used] * (labels[used] - self.mean)

        size = min(KRYLOV_STEPS, int(used.sum()))
        self.basis = np.zeros((size, len(labels)), np.float32)
        held_scores = np.zeros((size, len(held)))
        diagonal, beside = np.zeros(size), np.zeros(size)
        vector, steps = target, 0
        while steps < size and (norm := float(np.linalg.norm(vector))) > 1e-5 * diagonal.max():
            beside[steps] = norm
            self.basis[steps] = vector / norm
            moved = self._scores(self._coefficients(self.basis[steps]))
            moved -= self.shares @ moved
            held_scores[steps] = moved[held]
            vector = self.roots * moved
            diagonal[steps] = vector @ self.basis[steps]
            for _ in range(2):  # twice, as rounding leaves a part of the earlier vectors
                vector = vector - (self.basis @ vector.astype(np.float32)) @ self.basis
            steps += 1
        self.held_scores = held_scores[:steps]
        links = beside[1:steps]
        values, vectors = np.linalg.eigh(np.diag(diagonal[:steps]) + np.diag(links, 1) + np.diag(links, -1))
        along = beside[:1] * vectors[:1].T if steps else np.zeros((0, 1))
        self.parts = vectors @ (along / (values[:, None] + ALPHAS))
        """Each alpha's a as parts [steps, alphas] of the basis."""

    def scores(self) -> Array:
        """Scores [held, alphas] of the held-out documents."""
        scores: Array = self.mean + self.held_scores.T @ self.parts
        return scores

    def solution(self, index: int) -> tuple[NDArray[np.float32], float]:
        """Coefficients and bias for the alpha at `index`."""
        parts = self.parts[:, index].astype(np.float32)
        coefficients = self._coefficients(parts @ self.basis[: len(parts)])
        return coefficients, self.mean - float(self.shares @ self._scores(coefficients))

    def _coefficients(self, vector: NDArray[np.float32]) -> NDArray[np.float32]:
        """Z' @ vector, multiplied by idf once more so that raw features can be used."""
        sums = self.roots * vector
        sums -= self.shares * sums.sum()
        coefficients: NDArray[np.float32] = self.transposed @ (sums / self.lengths).astype(np.float32)
        coefficients *= self.squares
        return coefficients

    def _scores(self, coefficients: NDArray[np.float32]) -> Array:
        """Scores [n] of all documents, without bias."""
        scores: Array = (self.features @ coefficients).astype(np.float64) / self.lengths
        return scores


def _inverse_frequencies(features: csr_matrix, used: NDArray[np.bool_]) -> NDArray[np.float32]:
    """ln((1 + n) / (1 + documents with the feature)) + 1, as in scikit-learn; 0 for features of no document."""
    frequencies = np.zeros(features.shape[1])
    for start in range(0, features.shape[0], _BLOCK_ROWS):
        block = features[start : start + _BLOCK_ROWS][used[start : start + _BLOCK_ROWS]]
        frequencies += np.bincount(block.indices, minlength=len(frequencies))
    idf = np.where(frequencies > 0, np.log((1 + used.sum()) / (1 + frequencies)) + 1, 0)
    return idf.astype(np.float32)


def document_lengths(features: csr_matrix, idf: NDArray[np.float32]) -> NDArray[np.float32]:
    """Euclidean length [n] of documents under idf [features]; 1 for those without features."""
    lengths = np.ones(features.shape[0], np.float32)
    for start in range(0, len(lengths), _BLOCK_ROWS):
        block = features[start : start + _BLOCK_ROWS]
        block.data = np.square(block.data * idf[block.indices])
        lengths[start : start + _BLOCK_ROWS] = np.sqrt(block.sum(axis=1)).ravel()
    lengths[lengths == 0] = 1
    return lengths
