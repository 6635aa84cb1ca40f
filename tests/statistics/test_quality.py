"""Figures of heads with intervals: against scikit-learn, by stratum, and of two heads."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score, mean_absolute_error, roc_auc_score

from ml_filter.criterion import Criterion
from ml_filter.statistics.calibration import fit_calibration
from ml_filter.statistics.evaluation import evaluate_scores
from ml_filter.statistics.intervals import Resampling
from ml_filter.statistics.metrics import COMPARED_FIGURES
from ml_filter.statistics.quality import (
    LENGTH,
    HeadScores,
    compare_heads,
    length_buckets,
    measure_quality,
)
from ml_filter.statistics.rounding import integer_scores

FEW = Resampling(resamples=100)
CRITERION = Criterion(name="quality", low=0, high=5, threshold=3)


def documents(n=300, seed=0, noise=0.7):
    random = np.random.default_rng(seed)
    labels = random.choice(5, n, p=[0.3, 0.25, 0.2, 0.15, 0.1]).astype(float)
    return np.clip(labels * 0.7 + 0.6 + random.normal(0, noise, n), 0, 5).round(1), labels


def measure(scores, labels, **options):
    return measure_quality(np.asarray(scores), np.asarray(labels), CRITERION, **{"resampling": FEW, **options})


SMALL = st.integers(1, 40).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(0, 10).map(lambda k: k / 2), min_size=n, max_size=n),
        st.lists(st.sampled_from([0.0, 1.0, 3.0]), min_size=n, max_size=n),
    )
)


@settings(max_examples=25, deadline=None)
@given(SMALL)
def test_figures_with_intervals_equal_those_without(documents):
    quality = measure(*documents)
    for k, figures in quality.threshold_intervals.items():
        for name, figure in figures.items():
            expected = getattr(quality.thresholds[k], name)
            assert figure.value == (None if expected is None else pytest.approx(expected))
            assert figure.low is None or figure.low <= figure.value <= figure.high
    same = {"exact_agreement": quality.accuracy, "f1_at_threshold": quality.f1_at_threshold, "mae": quality.mae}
    same |= {"macro_f1": quality.macro_f1, "spearman": quality.spearman, "mse": quality.mse}
    same |= {"macro_f1_at_threshold": quality.macro_f1_at_threshold}
    for name, expected in same.items():
        value = quality.intervals[name].value
        if quality.documents < 3:
            assert value is None
            assert quality.intervals[name].reason.endswith("at least 3 are required")
        elif expected is None:
            assert value is None
        else:
            assert value == pytest.approx(expected)


def test_intervals_match_a_plain_bootstrap():
    scores, labels = documents()
    quality = measure(scores, labels, resampling=Resampling(resamples=1000))
    random = np.random.default_rng(1)
    drawn = []
    for _ in range(400):
        rows = random.integers(0, 300, 300)
        good, kept = labels[rows] >= 3, integer_scores(scores[rows], 0, 5) >= 3
        error = mean_absolute_error(labels[rows], scores[rows])
        drawn.append((roc_auc_score(good, scores[rows]), f1_score(good, kept), error))
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    ours = [quality.threshold_intervals[3]["roc_auc"], quality.intervals["f1_at_threshold"], quality.intervals["mae"]]
    assert [figure.low for figure in ours] == pytest.approx(low.tolist(), abs=0.02)
    assert [figure.high for figure in ours] == pytest.approx(high.tolist(), abs=0.02)


def test_calibrated_head_is_measured_by_its_int_scores():
    scores, labels = documents(600)
    calibration = fit_calibration(*documents(600, seed=1), CRITERION, fitted_on="others", resampling=FEW)
    quality = measure(scores, labels, calibration=calibration)
    int_scores = calibration.integer_scores(scores)
    assert quality.f1_at_threshold == pytest.approx(f1_score(labels >= 3, int_scores >= 3))
    assert quality.intervals["f1_at_threshold"].value == pytest.approx(quality.f1_at_threshold)
    assert quality.threshold_intervals[3]["f1"].value == pytest.approx(quality.f1_at_threshold)
    assert quality.intervals["mae"].value == pytest.approx(mean_absolute_error(labels, scores))
    predicted = sum(bin_.predicted * bin_.observed.documents for bin_ in quality.reliability) / 600
    assert predicted == pytest.approx((labels >= 3).mean(), abs=0.05)
    assert sum(bin_.observed.documents for bin_ in quality.reliability) == 600
    brier = np.mean((calibration.probability(scores, 3) - (labels >= 3)) ** 2)
    assert quality.brier.value == pytest.approx(brier)
    assert measure(scores, labels).reliability == []


def test_documents_without_a_score_are_counted_and_change_nothing_else():
    scores, labels = documents()
    quality = measure(np.append(scores, math.nan), np.append(labels, 5.0), columns={"language": ["en"] * 301})
    assert quality.unscored == 1
    assert quality.strata[0].documents == 300
    assert quality.model_copy(update={"unscored": 0}) == measure(scores, labels, columns={"language": ["en"] * 300})


# --- Strata ----------------------------------------------------------------------------------------------------------


def test_each_stratum_has_the_figures_of_its_documents():
    scores, labels = documents()
    languages = np.where(np.arange(300) % 3 == 0, "de", "en")
    strata = {
        stratum.value: stratum for stratum in measure(scores, labels, columns={"language": languages.tolist()}).strata
    }
    for language in ("de", "en"):
        chosen = languages == language
        alone = evaluate_scores(scores[chosen], labels[chosen], CRITERION)
        assert strata[language].documents == chosen.sum()
        for name, figure in strata[language].figures.items():
            assert figure.value == pytest.approx(getattr(alone, name))
            assert figure.low < figure.value < figure.high


def test_documents_without_a_value_are_in_no_stratum_and_rare_values_are_counted():
    scores, labels = documents()
    values = ["common"] * 200 + [f"rare {k}" for k in range(50)] + [None] * 50
    quality = measure(scores, labels, columns={"source": values})
    assert [stratum.documents for stratum in quality.strata] == [200] + [1] * 9
    assert quality.strata[1].figures["spearman"].reason == "too few documents (1); at least 3 are required"
    assert quality.others == {"source": 41}


def test_length_buckets_keep_their_order():
    assert length_buckets(np.array([0, 255, 256, 1023, 4096])) == [
        "under 256",
        "under 256",
        "256 to 511",
        "512 to 1,023",
        "4,096 or more",
    ]
    scores, labels = documents(40)
    column = length_buckets(np.repeat([20_000, 10, 2_000], [20, 5, 15]))
    quality = measure(scores, labels, columns={f"{LENGTH} words": column})
    assert [stratum.value for stratum in quality.strata] == ["under 256", "1,024 to 4,095", "4,096 or more"]


# --- Two heads -------------------------------------------------------------------------------------------------------


def heads(n=300):
    ours, labels = documents(n, noise=0.5)
    theirs = np.clip(ours + np.random.default_rng(9).normal(0, 1.5, n), 0, 5)
    return HeadScores.from_scores(ours, CRITERION), HeadScores.from_scores(theirs, CRITERION), labels


def test_every_figure_shows_the_better_head():
    ours, theirs, labels = heads()
    quality = compare_heads(ours, theirs, labels, CRITERION)
    assert set(quality.differences) == set(COMPARED_FIGURES)
    for name, difference in quality.differences.items():
        assert difference.value == pytest.approx(quality.ours[name].value - quality.theirs[name].value)
        assert difference.low <= difference.value <= difference.high
        assert (difference.low > 0) if COMPARED_FIGURES[name] else (difference.high < 0)


def test_swapping_the_heads_changes_the_sign_of_differences():
    ours, theirs, labels = heads()
    forth = compare_heads(ours, theirs, labels, CRITERION, resampling=FEW)
    back = compare_heads(theirs, ours, labels, CRITERION, resampling=FEW)
    assert forth.ours == back.theirs
    for name, difference in forth.differences.items():
        assert difference.value == pytest.approx(-back.differences[name].value)
        assert difference.low == pytest.approx(-back.differences[name].high, abs=0.2 * abs(difference.value))


def test_head_does_not_differ_from_itself():
    ours, _, labels = heads()
    for difference in compare_heads(ours, ours, labels, CRITERION, resampling=FEW).differences.values():
        assert (difference.low, difference.value, difference.high) == (0, 0, 0)


def test_only_documents_that_both_scored_are_compared():
    ours, theirs, labels = heads()
    gap = np.where(np.arange(300) < 100, math.nan, theirs.scores)
    quality = compare_heads(ours, HeadScores.from_scores(gap, CRITERION), labels, CRITERION, resampling=FEW)
    later = np.arange(300) >= 100
    assert quality.documents == 200
    assert quality == compare_heads(ours.take(later), theirs.take(later), labels[later], CRITERION, resampling=FEW)


def test_calibration_changes_classes_but_not_ranks():
    (scores, labels), (others, their_labels) = documents(600), documents(600, seed=1)
    scores, others = scores / 2 + 1, others / 2 + 1  # a head that draws all scores to the middle
    calibration = fit_calibration(others, their_labels, CRITERION, fitted_on="others", resampling=FEW)
    plain, calibrated = (
        HeadScores.from_scores(scores, CRITERION),
        HeadScores.from_scores(scores, CRITERION, calibration),
    )
    differences = compare_heads(calibrated, plain, labels, CRITERION, resampling=FEW).differences
    assert differences["spearman"].value == differences["mae"].value == 0
    assert differences["exact_agreement"].low > 0


def test_two_documents_are_too_few_to_compare():
    ours, theirs, labels = heads(2)
    quality = compare_heads(ours, theirs, labels, CRITERION, resampling=FEW)
    assert {figure.reason for figure in quality.differences.values()} == {
        "too few documents (2); at least 3 are required"
    }
