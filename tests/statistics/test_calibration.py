"""Calibration: curves against scikit-learn, laws that hold for all of them, and what thresholds keep."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.calibration import _sigmoid_calibration
from sklearn.isotonic import IsotonicRegression

from ml_filter.errors import InputError
from ml_filter.statistics.agreement import Resampling
from ml_filter.statistics.calibration import Calibration, fit_calibration, threshold_table
from ml_filter.statistics.evaluation import integer_scores

FEW = Resampling(resamples=100)


def documents(n=400, seed=0, shrink=0.6, noise=0.6):
    """Labels 0 to 4 and the scores of a head that shrinks them to the middle."""
    random = np.random.default_rng(seed)
    labels = random.choice(5, n, p=[0.3, 0.25, 0.2, 0.15, 0.1]).astype(float)
    return np.clip(labels * shrink + 0.8 + random.normal(0, noise, n), 0, 5), labels


def fit(scores, labels, **given) -> Calibration:
    made = fit_calibration(
        np.asarray(scores),
        np.asarray(labels),
        **{"low": 0, "high": 5, "threshold": 3, "fitted_on": "a test", "how": FEW, **given},
    )
    assert made is not None
    return made


CALIBRATIONS = st.builds(
    lambda n, seed, shrink, noise, method: fit(*documents(n, seed, shrink, noise), method=method),
    st.integers(120, 400),
    st.integers(0, 100),
    st.sampled_from([-0.5, 0.0, 0.3, 1.0]),
    st.sampled_from([0.0, 0.3, 2.0]),
    st.sampled_from(["isotonic", "platt"]),
)
PROBES = np.linspace(0, 5, 501)


def test_isotonic_probabilities_are_scikit_learns():
    scores, labels = documents()
    made = fit(scores, labels)
    for k in made.curves:
        theirs = IsotonicRegression(out_of_bounds="clip").fit(scores, labels >= k).predict(PROBES)
        assert made.probability(PROBES, k) == pytest.approx(theirs, abs=1e-12)


def test_platt_probabilities_are_those_of_platts_algorithm():
    scores, labels = documents()
    made = fit(scores, labels, method="platt")
    for k in made.curves:
        a, b = _sigmoid_calibration(scores, labels >= k)
        assert made.curves[k](PROBES) == pytest.approx(1 / (1 + np.exp(a * PROBES + b)), abs=1e-3)


def test_on_what_it_was_fitted_the_probabilities_sum_to_the_good_documents():
    scores, labels = documents()
    assert fit(scores, labels).probability(scores, 3).sum() == pytest.approx((labels >= 3).sum())


@settings(max_examples=30, deadline=None)
@given(CALIBRATIONS)
def test_probabilities_rise_with_the_score_and_fall_with_the_threshold(calibration):
    all_of_them = np.array([calibration.probability(PROBES, k) for k in calibration.curves])
    assert ((all_of_them >= 0) & (all_of_them <= 1)).all()
    assert (np.diff(all_of_them, axis=1) >= -1e-12).all()
    assert (np.diff(all_of_them, axis=0) <= 0).all()


@settings(max_examples=30, deadline=None)
@given(CALIBRATIONS)
def test_int_score_reaches_k_exactly_where_its_probability_reaches_one_half(calibration):
    scores = np.concatenate([PROBES, [cut for cut in calibration.cuts.values() if cut is not None]])
    whole = calibration.integer_scores(scores)
    assert (np.diff(whole[: len(PROBES)]) >= 0).all()
    assert set(whole) <= set(range(6))
    for k in calibration.curves:
        assert ((whole >= k) == (calibration.probability(scores, k) >= 0.5)).all()


@settings(max_examples=10, deadline=None)
@given(CALIBRATIONS)
def test_it_is_the_same_after_a_way_through_json(calibration):
    again = Calibration.model_validate_json(calibration.model_dump_json())
    assert again == calibration
    assert (again.integer_scores(PROBES) == calibration.integer_scores(PROBES)).all()


def test_whole_scores_of_a_head_that_shrinks_fit_the_labels_better_than_rounding():
    scores, labels = documents(2000)
    made = fit(scores, labels)
    others, wanted = documents(2000, seed=1)
    assert (made.integer_scores(others) == wanted).mean() > (integer_scores(others, 0, 5) == wanted).mean() + 0.04


def test_where_the_labels_bear_no_curve_rounding_stays_and_there_is_no_probability():
    scores, labels = documents()
    made = fit(scores, labels)
    assert list(made.curves) == [1, 2, 3, 4]  # no label is 5
    assert made.cuts[5] == 4.5
    assert made.integer_scores(np.array([4.4, 4.5])).tolist() == [4, 5]
    with pytest.raises(InputError, match="reaching 5: fewer than 10 of its 400 labels"):
        made.probability(PROBES, 5)


def test_a_label_that_no_score_foretells_is_never_given():
    random = np.random.default_rng(0)
    labels = np.where(random.random(400) < 0.1, 3.0, 1.0)
    made = fit(random.uniform(1, 3, 400), labels, method="platt")
    assert made.cuts == {1: 0.5, 2: None, 3: None, 4: None, 5: None}
    assert made.integer_scores(PROBES).max() == 1


def test_constant_scores_give_the_share_of_the_labels():
    labels = documents()[1]
    for method in ("isotonic", "platt"):
        made = fit(np.full(400, 2.0), labels, method=method)
        assert made.probability(np.array([0.0, 2.0, 5.0]), 2) == pytest.approx([(labels >= 2).mean()] * 3, abs=0.01)


def test_scores_that_point_the_wrong_way_mean_nothing():
    scores, labels = documents()
    made = fit(5 - scores, labels, method="platt")
    assert made.curves[3].slope == 0
    assert made.probability(PROBES, 3) == pytest.approx(np.full(501, (labels >= 3).mean()), abs=0.01)


def test_too_few_documents_and_labels_all_alike_give_no_calibration():
    scores, labels = documents(49)
    given = {"low": 0, "high": 5, "threshold": 3, "fitted_on": "a test"}
    assert fit_calibration(scores, labels, **given) is None
    assert fit_calibration(documents()[0], np.full(400, 2.0), **given) is None


def test_documents_without_a_score_are_left_out():
    scores, labels = documents()
    with_gaps = np.concatenate([scores, np.full(50, math.nan)])
    assert fit(with_gaps, np.concatenate([labels, np.full(50, 4.0)])) == fit(scores, labels)


def test_labels_are_counted_rounded_and_it_says_what_it_rests_on():
    scores, labels = documents()
    made = fit(scores, labels - 0.4)
    assert made.labels == {k: int((labels == k).sum()) for k in range(5)}
    assert (made.documents, made.fitted_on, made.method) == (400, "a test", "isotonic")


# --- What a threshold keeps ------------------------------------------------------------------------------------------


def test_a_threshold_keeps_what_counting_says():
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
def test_the_higher_the_threshold_the_less_it_keeps(n, seed):
    scores, labels = documents(n, seed)
    table = threshold_table(scores, labels >= 3, low=0, high=5, tokens=np.full(n, 7), how=FEW)
    for name in ("recall", "documents", "tokens"):
        shares = [getattr(row, name).value for row in table]
        if (labels >= 3).any() or name != "recall":
            assert (np.diff(shares) <= 0).all()
    assert table[0].documents.value == 1
    assert table[0].tokens.value == 1


def test_a_threshold_that_keeps_nothing_has_no_precision():
    row = threshold_table(np.full(100, 2.0), np.arange(100) < 50, low=0, high=5, how=FEW)[-1]
    assert row.precision.value is None
    assert row.recall.value == row.documents.value == 0
    assert row.tokens is None


def test_twenty_good_documents_of_twenty_do_not_promise_that_all_are_good():
    scores = np.repeat([1.0, 4.0], [80, 20])
    row = next(r for r in threshold_table(scores, scores > 2, low=0, high=5, how=FEW) if r.score == 3)
    exact = binomtest(20, 20).proportion_ci(0.95, "exact")
    assert (row.precision.value, row.precision.low, row.precision.high) == (1, pytest.approx(exact.low), 1)


def test_probabilities_tell_of_a_corpus_without_labels_what_labels_would():
    made = fit(*documents(4000))
    scores, labels = documents(4000, seed=1)
    expected = threshold_table(scores, made.probability(scores, 3), low=0, high=5, how=FEW)
    found = threshold_table(scores, labels >= 3, low=0, high=5, how=FEW)
    for one, other in zip(expected[:13], found[:13], strict=True):  # up to 3, as few documents score higher
        assert one.precision.value == pytest.approx(other.precision.value, abs=0.05)
        assert one.recall.value == pytest.approx(other.recall.value, abs=0.05)


def test_no_documents_give_no_table():
    assert threshold_table(np.empty(0), np.empty(0), low=0, high=5) == []
