"""The weighted statistics give what scipy, scikit-learn, statsmodels and krippendorff compute on the documents."""

import math

import krippendorff
import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from statsmodels.stats.inter_rater import fleiss_kappa

from ml_filter.statistics import agreement as group
from ml_filter.statistics.intervals import single_figures
from ml_filter.statistics.weighted import (
    at_threshold,
    kendall,
    kendall_by_scipy,
    rank_and_distance,
    ranking,
    table_statistic,
)

NAN = math.nan
PAIRS = st.tuples(st.integers(3, 40), st.just(2))
CLASSES = hnp.arrays(np.float64, PAIRS, elements=st.integers(0, 5).map(float))
SCORES = hnp.arrays(np.float64, PAIRS, elements=st.integers(0, 50).map(lambda n: n / 10))
RATERS = hnp.arrays(
    np.float64,
    st.tuples(st.integers(3, 25), st.integers(2, 4)),
    elements=st.sampled_from([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, NAN]),
)
LIBRARY = {
    "spearman": lambda x, y: scipy.stats.spearmanr(x, y).statistic,
    "pearson": lambda x, y: scipy.stats.pearsonr(x, y).statistic,
    "kendall": lambda x, y: scipy.stats.kendalltau(x, y).statistic,
    "mae": sklearn.metrics.mean_absolute_error,
    "mse": sklearn.metrics.mean_squared_error,
    "mean_difference": lambda x, y: (y - x).mean(),
    "kappa": lambda x, y: sklearn_kappa(x, y, None),
    "kappa_linear": lambda x, y: sklearn_kappa(x, y, "linear"),
    "kappa_quadratic": lambda x, y: sklearn_kappa(x, y, "quadratic"),
    "exact_agreement": sklearn.metrics.accuracy_score,
    "macro_f1": lambda x, y: sklearn.metrics.f1_score(x, y, average="macro", zero_division=0),
    "agreement_at_threshold": sklearn.metrics.accuracy_score,
    "precision_at_threshold": sklearn.metrics.precision_score,
    "recall_at_threshold": sklearn.metrics.recall_score,
    "f1_at_threshold": sklearn.metrics.f1_score,
    "macro_f1_at_threshold": lambda x, y: sklearn.metrics.f1_score(x, y, average="macro", zero_division=0),
}


def sklearn_kappa(x, y, weights) -> float:
    # All whole numbers of the scale, as scikit-learn weights labels by their position.
    labels = np.arange(min(x.min(), y.min()), max(x.max(), y.max()) + 1)
    return sklearn.metrics.cohen_kappa_score(x, y, labels=labels, weights=weights)


def assert_same_as_library(rows, statistic, expected=LIBRARY):
    for name, value in single_figures(rows, statistic).items():
        if name in expected and value is not None:
            assert value == pytest.approx(expected[name](*rows.T), abs=1e-12), name


@settings(max_examples=40, deadline=None)
@given(SCORES)
def test_correlations_and_errors(scores):
    assert_same_as_library(scores, rank_and_distance)
    assert_same_as_library(scores, kendall)
    assert single_figures(scores, kendall) == pytest.approx(single_figures(scores, kendall_by_scipy))


@settings(max_examples=40, deadline=None)
@given(CLASSES)
def test_figures_of_classes_and_of_decisions(classes):
    assert_same_as_library(classes, table_statistic(np.unique(classes)))
    assert_same_as_library((classes >= 3).astype(float), at_threshold)


@settings(max_examples=40, deadline=None)
@given(RATERS)
def test_alpha_and_fleiss_kappa_of_several_raters(scores):
    scores = scores[np.isfinite(scores).sum(axis=1) >= 2]
    if not len(scores):
        return
    counts = group.class_counts(scores, np.arange(6.0))
    figures = single_figures(counts, group.alpha_of_classes) | single_figures(scores, group.alpha_interval)
    for level in ("nominal", "ordinal", "interval"):
        if figures[f"alpha_{level}"] is not None:
            expected = krippendorff.alpha(scores.T, level_of_measurement=level)
            assert figures[f"alpha_{level}"] == pytest.approx(expected, abs=1e-9)
    complete = counts[np.isfinite(scores).all(axis=1)]
    if len(complete) and (kappa := single_figures(complete, group.fleiss_kappa)["fleiss_kappa"]) is not None:
        assert kappa == pytest.approx(fleiss_kappa(complete), abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(SCORES, st.integers(0, 2**32 - 1))
def test_ranking_figures_of_weighted_documents(scores, seed):
    scores, labels = scores[np.argsort(scores[:, 0], kind="stable")].T
    good = labels >= 3
    weights = np.random.default_rng(seed).integers(0, 4, (3, len(scores))).astype(float)
    figures = ranking(scores, good.astype(float), weights)
    for times, auc, precision in zip(weights, figures["roc_auc"], figures["average_precision"], strict=True):
        if times[good].sum() and times[~good].sum():
            assert auc == pytest.approx(sklearn.metrics.roc_auc_score(good, scores, sample_weight=times))
            expected = sklearn.metrics.average_precision_score(good, scores, sample_weight=times)
            assert precision == pytest.approx(expected)
        else:
            assert math.isnan(auc)
            assert math.isnan(precision)


def test_kappa_weighs_by_the_distance_of_scores_not_of_their_positions():
    # With 2, 3 and 4 unused, 1 against 5 still counts as four steps.
    scores = np.array([[0, 0], [1, 1], [5, 5], [1, 5], [0, 1], [5, 5]], dtype=float)
    distance = (np.subtract(*scores.T) ** 2).mean()
    chance = np.mean([(a - b) ** 2 for a, _ in scores for _, b in scores])
    kappa = single_figures(scores, table_statistic(np.unique(scores)))["kappa_quadratic"]
    assert kappa == pytest.approx(1 - distance / chance)
