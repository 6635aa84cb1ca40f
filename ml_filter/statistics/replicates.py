"""Differences between two ways of making a model, over documents and over repetitions with other seeds.

A repetition is a pair of models, one of each kind, with the same seed. Documents are drawn with replacement; the few
repetitions are not, since a bootstrap of three to six values is too narrow. Their mean has Student's t distribution
instead: every resample adds t (repetitions - 1) times its standard error.

Sources: Efron and Tibshirani 1993, chapter 13 (percentile interval); Student 1908.
"""

from __future__ import annotations

import math

import numpy as np
from pydantic import BaseModel

from ml_filter.statistics.intervals import MAX_WEIGHTS, Array, Figure, Resampling

_DESIGNS, _DRAWS, _ERRORS, _STEPS = 2000, 2000, 50, 20
"""Of the simulation of a power: designs, for each draws of the interval and errors of the mean, and steps, which bound
the memory."""


class Spread(BaseModel):
    """Standard deviations of a difference: over documents, and over repetitions."""

    documents: float
    repetitions: float


class Power(BaseModel):
    """The smallest true difference that a design finds with a probability of `power`, and what that rests on."""

    smallest: float
    power: float
    confidence: float
    documents: int
    repetitions: int
    spread: Spread


def paired_mean(differences: Array, resampling: Resampling) -> Figure:
    """The mean of differences [documents, repetitions], of at least two repetitions, with its interval."""
    documents, repetitions = differences.shape
    random = np.random.default_rng(resampling.seed)
    means, errors = [], []
    step = max(1, MAX_WEIGHTS // documents)
    for first in range(0, resampling.resamples, step):
        count = min(step, resampling.resamples - first)
        weights = random.multinomial(documents, np.full(documents, 1 / documents), size=count).astype(np.float64)
        by_repetition = weights @ differences / documents
        means.append(by_repetition.mean(axis=1))
        errors.append(by_repetition.std(axis=1, ddof=1) / math.sqrt(repetitions))
    drawn = np.concatenate(means) + np.concatenate(errors) * random.standard_t(repetitions - 1, resampling.resamples)
    outside = (1 - resampling.confidence) / 2
    low, high = np.quantile(drawn, [outside, 1 - outside]).tolist()
    return Figure(
        value=float(differences.mean()), low=low, high=high, documents=documents, resamples=resampling.resamples
    )


def spread_of(differences: Array) -> Spread:
    """The spread of differences [documents, repetitions]."""
    return Spread(
        documents=float(differences.mean(axis=1).std(ddof=1)), repetitions=float(differences.mean(axis=0).std(ddof=1))
    )


def smallest_difference(
    spread: Spread, documents: int, repetitions: int, confidence: float, power: float = 0.8
) -> Power:
    """The smallest difference that an interval over these numbers of documents and repetitions tells from 0.

    Designs with normally distributed differences are simulated. Each shows other spreads, and from these follows the
    half width of the interval of `paired_mean`, whose resamples are normal over documents. A difference is found if it
    is above the half width plus the error of the mean, so the smallest is the quantile `power` of that sum.
    """
    random = np.random.default_rng(0)
    count = _DESIGNS // _STEPS
    deviation = math.sqrt(spread.documents**2 / documents + spread.repetitions**2 / repetitions)
    sums = []
    for _ in range(_STEPS):
        of_documents = spread.documents / documents * np.sqrt(random.chisquare(documents - 1, (count, 1)))
        of_repetitions = np.sqrt(random.chisquare(repetitions - 1, (count, 1)) / (repetitions - 1) / repetitions)
        drawn = of_documents * random.standard_normal((count, _DRAWS))
        drawn += spread.repetitions * of_repetitions * random.standard_t(repetitions - 1, (count, _DRAWS))
        half = np.quantile(drawn, (1 + confidence) / 2, axis=1)
        sums.append(half + deviation * random.standard_normal((_ERRORS, count)))
    return Power(
        smallest=float(np.quantile(sums, power)),
        power=power,
        confidence=confidence,
        documents=documents,
        repetitions=repetitions,
        spread=spread,
    )
