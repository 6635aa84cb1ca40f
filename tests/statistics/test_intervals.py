"""Bootstrap intervals against a plain bootstrap, and exact intervals of shares against scipy."""

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, spearmanr

from ml_filter.statistics.intervals import (
    Resampling,
    exact_interval,
    exact_upper_bound,
    mean_figure,
    resampled_figures,
)
from ml_filter.statistics.weighted import at_threshold, rank_and_distance, shares_at_threshold, table_statistic

FEW = Resampling(resamples=100)
CONFIDENCES = st.sampled_from([0.8, 0.95])


def correlations(scores, resampling=FEW):
    return resampled_figures(np.array(scores, dtype=float), rank_and_distance, resampling)


def decisions(good, resampling=FEW):
    rows = np.array(good, dtype=float)
    return resampled_figures(rows, at_threshold, resampling, shares_at_threshold(rows))


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.floats(0.5, 0.999))
def test_exact_interval_is_that_of_scipys_binomial_test(share, confidence):
    expected = binomtest(*share).proportion_ci(confidence, method="exact")
    assert exact_interval(*share, confidence) == pytest.approx((expected.low, expected.high), abs=1e-9)
    one_sided = binomtest(*share, alternative="less").proportion_ci(confidence, method="exact")
    assert exact_upper_bound(*share, confidence) == pytest.approx(one_sided.high, abs=1e-9)


def test_intervals_match_a_plain_bootstrap():
    """Draw documents, compute each figure with a library, take percentiles."""
    random = np.random.default_rng(3)
    truth = random.integers(0, 6, 80)
    scores = np.stack([truth, (truth + random.integers(-1, 3, 80)).clip(0, 5)], axis=1).astype(float)
    resampling = Resampling(resamples=2000)
    figures = correlations(scores, resampling)
    figures |= resampled_figures(scores, table_statistic(np.unique(scores)), resampling)
    drawn = scores[random.integers(0, 80, (1000, 80))]
    plain = {
        "spearman": [spearmanr(*sample.T).statistic for sample in drawn],
        "kappa_quadratic": [sklearn.metrics.cohen_kappa_score(*sample.T, weights="quadratic") for sample in drawn],
        "mae": np.abs(drawn[:, :, 0] - drawn[:, :, 1]).mean(axis=1),
    }
    for name, values in plain.items():
        low, high = np.quantile(values, [0.025, 0.975])
        assert (figures[name].low, figures[name].high) == pytest.approx((low, high), abs=0.15 * (high - low)), name
        assert figures[name].resamples == 2000


def test_few_documents_give_figures_without_interval():
    nine = correlations([[i % 5, i % 4] for i in range(9)])
    assert nine["spearman"].value is not None
    assert {figure.reason for figure in nine.values()} == {
        "no interval: too few documents (9); at least 10 are required"
    }
    ten = correlations([[i % 5, i % 4] for i in range(10)])
    assert {figure.reason for figure in ten.values()} == {None}


def test_figure_that_most_resamples_leave_undefined_has_no_interval():
    rare = correlations([[0, 0]] * 200 + [[5, 5], [0, 5], [5, 0]])["spearman"]
    assert rare.low is not None
    rarer = correlations([[0, 0]] * 40 + [[0, 1], [1, 0]])["spearman"]
    assert rarer.value == pytest.approx(-1 / 41)
    assert rarer.interval is None
    assert rarer.reason == f"no interval: the figure is undefined in {100 - rarer.resamples} of 100 resamples"


def test_share_of_resamples_in_which_a_figure_must_be_defined_can_be_raised():
    scores = [[0, 0]] * 39 + [[5, 5]]
    half = correlations(scores, Resampling(resamples=500))["spearman"]
    assert (half.low, half.high) == (pytest.approx(1), 1)
    strict = correlations(scores, Resampling(resamples=500, defined=0.95))["spearman"]
    assert (strict.value, strict.low) == (pytest.approx(1), None)
    assert "no interval: the figure is undefined in" in strict.reason


@given(st.integers(1, 30), st.integers(10, 40), st.integers(0, 3), CONFIDENCES)
@settings(max_examples=20, deadline=None)
def test_share_of_0_or_1_has_the_exact_interval(good, bad, wrong, confidence):
    resampling = Resampling(resamples=100, confidence=confidence)
    figures = decisions([[1, 1]] * good + [[0, 0]] * bad + [[0, 1]] * wrong, resampling)
    shares = {"recall": good} | ({} if wrong else {"precision": good, "agreement": good + bad})
    for name, count in shares.items():
        exact = binomtest(count, count).proportion_ci(confidence, method="exact")
        figure = figures[f"{name}_at_threshold"]
        assert figure.value == 1
        if figure.interval:  # otherwise it is undefined in most resamples
            assert (figure.low, figure.high) == (pytest.approx(exact.low), 1), name
    none = mean_figure(np.zeros(bad), resampling, is_share=True)
    assert none.high == pytest.approx(binomtest(0, bad).proportion_ci(confidence, method="exact").high)


def test_exact_interval_of_f1_counts_the_documents_that_either_rater_called_good():
    hits = decisions([[1, 1]] * 10 + [[0, 0]] * 30)["f1_at_threshold"]
    bound = 0.025 ** (1 / 10)
    assert (hits.value, hits.low, hits.high) == (1, pytest.approx(2 * bound / (1 + bound)), 1)
    misses = decisions([[1, 0]] * 5 + [[0, 1]] * 5 + [[0, 0]] * 30)["f1_at_threshold"]
    assert (misses.value, misses.low, misses.high) == (0, 0, pytest.approx(2 * (1 - bound) / (2 - bound)))


def test_mean_has_an_interval():
    mean = mean_figure(np.array([0.0, 1.0, 0.0] * 5), FEW)
    assert (mean.value, mean.documents) == (pytest.approx(1 / 3), 15)
    assert mean.low < mean.value < mean.high
