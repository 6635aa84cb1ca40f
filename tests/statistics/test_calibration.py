"""Calibration: curves against scikit-learn, properties of all curves, and what thresholds keep."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.calibration import _sigmoid_calibration
from sklearn.isotonic import IsotonicRegression

from ml_filter.criterion import Criterion
from ml_filter.errors import InputError
from ml_filter.statistics.calibration import Calibration, can_calibrate, fit_calibration, threshold_table
from ml_filter.statistics.intervals import Resampling
from ml_filter.statistics.rounding import integer_scores

CRITERION = Criterion(name="quality", low=0, high=5, threshold=3)
FEW = Resampling(resamples=100)


def documents(n=400, seed=0, shrink=0.6, noise=0.6):
    """Labels 0 to 4 and the scores of a head that shrinks them to the middle."""
    random = np.random.default_rng(seed)
    labels = random.choice(5, n, p=[0.3, 0.25, 0.2, 0.15, 0.1]).astype(float)
    return np.clip(labels * shrink + 0.8 + random.normal(0, noise, n), 0, 5), labels


def fit(scores, labels, **options) -> Calibration:
    options = {"fitted_on": "a test", "resampling": FEW} | options
    calibration = fit_calibration(np.asarray(scores), np.asarray(labels), CRITERION, **options)
    assert calibration is not None
    return calibration


CALIBRATIONS = st.builds(
    lambda n, seed, shrink, noise, method: fit(*documents(n, seed, shrink, noise), method=method),
    st.integers(120, 400),
    st.integers(0, 100),
    st.sampled_from([-0.5, 0.0, 0.3, 1.0]),
    st.sampled_from([0.0, 0.3, 2.0]),
    st.sampled_from(["isotonic", "platt"]),
)
PROBES = np.linspace(0, 5, 501)


def test_isotonic_curve_is_that_of_scikit_learn():
    scores, labels = documents()
    calibration = fit(scores, labels)
    for k in calibration.curves:
        theirs = IsotonicRegression(out_of_bounds="clip").fit(scores, labels >= k).predict(PROBES)
        assert calibration.probability(PROBES, k) == pytest.approx(theirs, abs=1e-12)


def test_platt_curve_is_that_of_scikit_learn():
    scores, labels = documents()
    calibration = fit(scores, labels, method="platt")
    for k in calibration.curves:
        a, b = _sigmoid_calibration(scores, labels >= k)
        assert calibration.curves[k](PROBES) == pytest.approx(1 / (1 + np.exp(a * PROBES + b)), abs=1e-3)


def test_probabilities_of_the_fitted_documents_sum_to_the_good_ones():
    scores, labels = documents()
    assert fit(scores, labels).probability(scores, 3).sum() == pytest.approx((labels >= 3).sum())


@settings(max_examples=30, deadline=None)
@given(CALIBRATIONS)
def test_probabilities_rise_with_the_score_and_fall_with_the_threshold(calibration):
    probabilities = np.array([calibration.probability(PROBES, k) for k in calibration.curves])
    assert ((probabilities >= 0) & (probabilities <= 1)).all()
    assert (np.diff(probabilities, axis=1) >= -1e-12).all()
    assert (np.diff(probabilities, axis=0) <= 0).all()


@settings(max_examples=30, deadline=None)
@given(CALIBRATIONS)
def test_int_score_reaches_k_exactly_where_its_probability_reaches_one_half(calibration):
    scores = np.concatenate([PROBES, [cut for cut in calibration.cuts.values() if cut is not None]])
    int_scores = calibration.integer_scores(scores)
    assert (np.diff(int_scores[: len(PROBES)]) >= 0).all()
    assert set(int_scores) <= set(range(6))
    for k in calibration.curves:
        assert ((int_scores >= k) == (calibration.probability(scores, k) >= 0.5)).all()


@settings(max_examples=10, deadline=None)
@given(CALIBRATIONS)
def test_calibration_survives_a_round_trip_through_json(calibration):
    again = Calibration.model_validate_json(calibration.model_dump_json())
    assert again == calibration
    assert (again.integer_scores(PROBES) == calibration.integer_scores(PROBES)).all()


def test_int_scores_match_labels_better_than_rounding_if_the_head_shrinks_scores():
    scores, labels = documents(2000)
    calibration = fit(scores, labels)
    others, wanted = documents(2000, seed=1)
    assert (calibration.integer_scores(others) == wanted).mean() > (
        integer_scores(others, 0, 5) == wanted
    ).mean() + 0.04


def test_whole_score_with_too_few_labels_is_rounded_and_has_no_probability():
    scores, labels = documents()
    calibration = fit(scores, labels)
    assert list(calibration.curves) == [1, 2, 3, 4]  # no label is 5
    assert calibration.cuts[5] == 4.5
    assert calibration.integer_scores(np.array([4.4, 4.5])).tolist() == [4, 5]
    with pytest.raises(InputError, match="reaching 5: fewer than 10 of its 400 labels"):
        calibration.probability(PROBES, 5)


def test_label_that_no_score_predicts_is_never_an_int_score():
    random = np.random.default_rng(0)
    labels = np.where(random.random(400) < 0.1, 3.0, 1.0)
    calibration = fit(random.uniform(1, 3, 400), labels, method="platt")
    assert calibration.cuts == {1: 0.5, 2: None, 3: None, 4: None, 5: None}
    assert calibration.integer_scores(PROBES).max() == 1


def test_constant_scores_get_the_share_of_the_labels():
    labels = documents()[1]
    for method in ("isotonic", "platt"):
        calibration = fit(np.full(400, 2.0), labels, method=method)
        assert calibration.probability(np.array([0.0, 2.0, 5.0]), 2) == pytest.approx(
            [(labels >= 2).mean()] * 3, abs=0.01
        )


def test_curve_never_falls():
    scores, labels = documents()
    calibration = fit(5 - scores, labels, method="platt")
    assert calibration.curves[3].slope == 0
    assert calibration.probability(PROBES, 3) == pytest.approx(np.full(501, (labels >= 3).mean()), abs=0.01)


def test_too_few_or_constant_labels_give_no_calibration():
    scores, labels = documents(49)
    assert fit_calibration(scores, labels, CRITERION, fitted_on="a test") is None
    assert fit_calibration(documents()[0], np.full(400, 2.0), CRITERION, fitted_on="a test") is None
    assert not can_calibrate(labels, CRITERION)
    assert can_calibrate(documents()[1], CRITERION)


def test_documents_without_a_score_are_ignored():
    scores, labels = documents()
    with_gaps = np.concatenate([scores, np.full(50, math.nan)])
    assert fit(with_gaps, np.concatenate([labels, np.full(50, 4.0)])) == fit(scores, labels)


def test_calibration_counts_its_labels_and_names_its_data():
    scores, labels = documents()
    calibration = fit(scores, labels - 0.4)
    assert calibration.labels == {k: int((labels == k).sum()) for k in range(5)}
    assert (calibration.documents, calibration.fitted_on, calibration.method) == (400, "a test", "isotonic")


# --- What a threshold keeps ------------------------------------------------------------------------------------------


def test_threshold_table_equals_counting():
    scores, labels = documents()
    tokens = np.arange(400)
    table = fit(scores, labels, tokens=tokens).table
    assert [row.score for row in table] == [k / 4 for k in range(21)]
    row = next(row for row in table if row.score == 2.0)
    kept = scores >= 2.0
    assert row.precision.value == pytest.approx((labels[kept] >= 3).mean())
    assert row.recall.value == pytest.approx(kept[labels >= 3].mean())
    assert row.documents.value == pytest.approx(kept.mean())
    assert row.tokens.value == pytest.approx(tokens[kept].sum() / tokens.sum())
    for figure in (row.precision, row.recall, row.documents, row.tokens):
        assert figure.low < figure.value < figure.high


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 60), st.integers(0, 1000))
def test_higher_threshold_keeps_less(n, seed):
    scores, labels = documents(n, seed)
    table = threshold_table(scores, labels >= 3, CRITERION, tokens=np.full(n, 7), resampling=FEW)
    for name in ("recall", "documents", "tokens"):
        shares = [getattr(row, name).value for row in table]
        if (labels >= 3).any() or name != "recall":
            assert (np.diff(shares) <= 0).all()
    assert table[0].documents.value == 1
    assert table[0].tokens.value == 1


def test_threshold_that_keeps_nothing_has_no_precision():
    row = threshold_table(np.full(100, 2.0), np.arange(100) < 50, CRITERION, resampling=FEW)[-1]
    assert row.precision.value is None
    assert row.recall.value == row.documents.value == 0
    assert row.tokens is None


def test_precision_of_1_has_the_exact_interval():
    scores = np.repeat([1.0, 4.0], [80, 20])
    row = next(r for r in threshold_table(scores, scores > 2, CRITERION, resampling=FEW) if r.score == 3)
    exact = binomtest(20, 20).proportion_ci(0.95, "exact")
    assert (row.precision.value, row.precision.low, row.precision.high) == (1, pytest.approx(exact.low), 1)


def test_probabilities_predict_the_table_of_an_unlabelled_corpus():
    calibration = fit(*documents(4000))
    scores, labels = documents(4000, seed=1)
    expected = threshold_table(scores, calibration.probability(scores, 3), CRITERION, resampling=FEW)
    observed = threshold_table(scores, labels >= 3, CRITERION, resampling=FEW)
    for ours, theirs in zip(expected[:13], observed[:13], strict=True):  # up to 3, as few documents score higher
        assert ours.precision.value == pytest.approx(theirs.precision.value, abs=0.05)
        assert ours.recall.value == pytest.approx(theirs.recall.value, abs=0.05)


def test_no_documents_give_no_table():
    assert threshold_table(np.empty(0), np.empty(0), CRITERION) == []
