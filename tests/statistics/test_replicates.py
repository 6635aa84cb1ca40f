"""Intervals of a paired difference over documents and repetitions."""

import numpy as np
import pytest

from ml_filter.statistics.intervals import Resampling
from ml_filter.statistics.replicates import Spread, paired_mean, smallest_difference, spread_of

CONFIDENCE = Resampling(resamples=400)


def drawn(seed: int, gain: float, documents: int = 50, repetitions: int = 3) -> np.ndarray:
    """A gain, and noise of documents (0.1) and of repetitions (0.01) around it."""
    random = np.random.default_rng(seed)
    return gain + random.normal(0, 0.1, (documents, 1)) + random.normal(0, 0.01, (1, repetitions))


def test_value_is_the_mean_of_all_differences():
    assert paired_mean(np.array([[1.0, 3.0], [5.0, 7.0]]), CONFIDENCE).value == 4


def test_interval_covers_the_true_gain_as_often_as_it_says():
    covered = 0
    for seed in range(200):
        figure = paired_mean(drawn(seed, 0.02), CONFIDENCE)
        covered += figure.low <= 0.02 <= figure.high
    assert 0.92 <= covered / 200 <= 0.99


def test_repetitions_that_differ_widen_the_interval_as_students_t_says():
    figure = paired_mean(np.repeat([[1.0, 2.0, 3.0]], 20, axis=0), Resampling(resamples=20_000))
    half = 4.303 / np.sqrt(3)
    assert (figure.low, figure.high) == (pytest.approx(2 - half, abs=0.2), pytest.approx(2 + half, abs=0.2))


def test_spread_is_that_of_the_simulation():
    spreads = [spread_of(drawn(seed, 0.02, documents=400, repetitions=8)) for seed in range(20)]
    assert np.mean([spread.documents for spread in spreads]) == pytest.approx(0.1, rel=0.1)
    assert np.mean([spread.repetitions for spread in spreads]) == pytest.approx(0.01, rel=0.2)


@pytest.mark.parametrize(("repetitions", "documents"), [(2, 59), (3, 59), (8, 59)])
def test_smallest_difference_is_found_as_often_as_promised(repetitions, documents):
    spread = Spread(documents=0.057, repetitions=0.0065)
    smallest = smallest_difference(spread, documents, repetitions, 0.95).smallest
    found = 0
    for seed in range(400):
        random = np.random.default_rng(seed)
        noise = random.normal(0, spread.documents, (documents, 1)), random.normal(0, spread.repetitions, repetitions)
        found += paired_mean(smallest + sum(noise), Resampling(resamples=400, seed=seed)).low > 0
    assert 0.74 <= found / 400 <= 0.86


def test_equal_differences_are_found_however_small():
    assert smallest_difference(Spread(documents=0, repetitions=0), 10, 2, 0.95).smallest == 0
