"""Weights of labelled documents for fitting."""

from __future__ import annotations

import numpy as np

from ml_filter.statistics.intervals import Array


def class_weights(labels: Array, weights: Array, balance: float) -> Array:
    """Weights [n, criteria] for fitting, with mean 1 over the labels; 0 for missing labels.

    They are `weights` times the frequency of each rounded label to the power of `-balance`.
    """
    balanced = np.zeros_like(weights)
    for index in range(labels.shape[1]):
        is_labelled = ~np.isnan(labels[:, index])
        if is_labelled.any():
            _, label_class, counts = np.unique(
                np.round(labels[is_labelled, index]), return_inverse=True, return_counts=True
            )
            frequencies = counts[label_class].astype(np.float64) ** -balance
            products = weights[is_labelled, index] * (frequencies / frequencies.mean())
            balanced[is_labelled, index] = products / products.mean()
    return balanced
