"""Figures with intervals: against scikit-learn, against counting pairs one by one, and what they say of known heads."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, f1_score, mean_absolute_error, roc_auc_score

from ml_filter.statistics import quality
from ml_filter.statistics.agreement import COMPARED_FIGURES, Resampling
from ml_filter.statistics.calibration import fit_calibration
from ml_filter.statistics.evaluation import evaluate_scores, integer_scores
from ml_filter.statistics.quality import (
    LENGTH,
    HeadScores,
    compare_heads,
    discriminate,
    length_buckets,
    measure_quality,
)

FEW = Resampling(resamples=100)
RANGE = {"low": 0, "high": 5, "threshold": 3}


def documents(n=300, seed=0, noise=0.7):
    random = np.random.default_rng(seed)
    labels = random.choice(5, n, p=[0.3, 0.25, 0.2, 0.15, 0.1]).astype(float)
    return np.clip(labels * 0.7 + 0.6 + random.normal(0, noise, n), 0, 5).round(1), labels


def measure(scores, labels, **given):
    return measure_quality(np.asarray(scores), np.asarray(labels), **{**RANGE, "how": FEW, **given})


SMALL = st.integers(1, 40).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(0, 10).map(lambda k: k / 2), min_size=n, max_size=n),
        st.lists(st.sampled_from([0.0, 1.0, 3.0]), min_size=n, max_size=n),
    )
)


@settings(max_examples=40, deadline=None)
@given(SMALL, st.integers(0, 2**32 - 1))
def test_ranking_figures_of_weighted_documents_are_scikit_learns(documents, seed):
    scores, labels = map(np.array, documents)
    order = np.argsort(scores, kind="stable")
    scores, good = scores[order], labels[order] >= 3
    weights = np.random.default_rng(seed).integers(0, 4, (3, len(scores))).astype(float)
    made = quality._ranking(scores, good, weights)
    for one, auc, precision in zip(weights, made["roc_auc"], made["average_precision"], strict=True):
        if one[good].sum() and one[~good].sum():
            assert auc == pytest.approx(roc_auc_score(good, scores, sample_weight=one))
            assert precision == pytest.approx(average_precision_score(good, scores, sample_weight=one))
        else:
            assert math.isnan(auc)
            assert math.isnan(precision)


@settings(max_examples=25, deadline=None)
@given(SMALL)
def test_figures_with_intervals_are_the_figures_without(documents):
    made = measure(*documents)
    for k, figures in made.threshold_intervals.items():
        for name, figure in figures.items():
            expected = getattr(made.thresholds[k], name)
            assert figure.value == (None if expected is None else pytest.approx(expected))
            assert figure.low is None or figure.low <= figure.value <= figure.high
    same = {"exact_agreement": made.accuracy, "f1_at_threshold": made.f1_at_threshold, "mae": made.mae}
    same |= {"macro_f1": made.macro_f1, "spearman": made.spearman, "mse": made.mse}
    same |= {"macro_f1_at_threshold": made.macro_f1_at_threshold}
    for name, expected in same.items():
        value = made.intervals[name].value
        if made.documents < 3:
            assert value is None
            assert made.intervals[name].reason.endswith("at least 3 are needed")
        elif expected is None:
            assert value is None
        else:
            assert value == pytest.approx(expected)


def test_intervals_are_those_of_resampling_documents_one_by_one():
    scores, labels = documents()
    made = measure(scores, labels, how=Resampling(resamples=1000))
    random = np.random.default_rng(1)
    drawn = []
    for _ in range(400):
        of = random.integers(0, 300, 300)
        good, kept = labels[of] >= 3, integer_scores(scores[of], 0, 5) >= 3
        row = (roc_auc_score(good, scores[of]), f1_score(good, kept), mean_absolute_error(labels[of], scores[of]))
        drawn.append(row)
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    mine = [made.threshold_intervals[3]["roc_auc"], made.intervals["f1_at_threshold"], made.intervals["mae"]]
    assert [figure.low for figure in mine] == pytest.approx(low.tolist(), abs=0.02)
    assert [figure.high for figure in mine] == pytest.approx(high.tolist(), abs=0.02)


def test_a_calibrated_head_is_judged_by_its_int_scores():
    scores, labels = documents(600)
    calibration = fit_calibration(*documents(600, seed=1), **RANGE, fitted_on="others", how=FEW)
    made = measure(scores, labels, calibration=calibration)
    whole = calibration.integer_scores(scores)
    assert made.f1_at_threshold == pytest.approx(f1_score(labels >= 3, whole >= 3))
    assert made.intervals["f1_at_threshold"].value == pytest.approx(made.f1_at_threshold)
    assert made.threshold_intervals[3]["f1"].value == pytest.approx(made.f1_at_threshold)
    assert made.intervals["mae"].value == pytest.approx(mean_absolute_error(labels, scores))
    stated = sum(one.predicted * one.observed.documents for one in made.reliability) / 600
    assert stated == pytest.approx((labels >= 3).mean(), abs=0.05)
    assert sum(one.observed.documents for one in made.reliability) == 600
    brier = np.mean((calibration.probability(scores, 3) - (labels >= 3)) ** 2)
    assert made.brier.value == pytest.approx(brier)
    assert measure(scores, labels).reliability == []


def test_documents_without_a_score_are_counted_and_change_nothing_else():
    scores, labels = documents()
    made = measure(np.append(scores, math.nan), np.append(labels, 5.0), strata={"language": ["en"] * 301})
    assert made.unscored == 1
    assert made.strata[0].documents == 300
    assert made.model_copy(update={"unscored": 0}) == measure(scores, labels, strata={"language": ["en"] * 300})


# --- Strata ----------------------------------------------------------------------------------------------------------


def test_each_stratum_has_the_figures_of_its_documents():
    scores, labels = documents()
    languages = np.where(np.arange(300) % 3 == 0, "de", "en")
    found = {one.value: one for one in measure(scores, labels, strata={"language": languages.tolist()}).strata}
    for language in ("de", "en"):
        of = languages == language
        alone = evaluate_scores(scores[of], labels[of], **RANGE)
        assert found[language].documents == of.sum()
        for name, figure in found[language].figures.items():
            assert figure.value == pytest.approx(getattr(alone, name))
            assert figure.low < figure.value < figure.high


def test_documents_without_a_value_are_in_no_stratum_and_rare_values_are_counted():
    scores, labels = documents()
    values = ["common"] * 200 + [f"rare {k}" for k in range(50)] + [None] * 50
    made = measure(scores, labels, strata={"source": values})
    assert [one.documents for one in made.strata] == [200] + [1] * 9
    assert made.strata[1].figures["spearman"].reason == "1 documents; at least 3 are needed"
    assert made.others == {"source": 41}


def test_lengths_make_buckets_that_stand_in_order():
    assert length_buckets(np.array([0, 255, 256, 1023, 4096])) == [
        "under 256",
        "under 256",
        "256 to 511",
        "512 to 1,023",
        "4,096 or more",
    ]
    scores, labels = documents(40)
    column = length_buckets(np.repeat([20_000, 10, 2_000], [20, 5, 15]))
    made = measure(scores, labels, strata={f"{LENGTH} words": column})
    assert [one.value for one in made.strata] == ["under 256", "1,024 to 4,095", "4,096 or more"]


# --- Within and across sources ---------------------------------------------------------------------------------------


def pairs_by_hand(scores, wanted, sources):
    """Right and all pairs by (same source, worse label, better label)."""
    counted = {}
    for i in range(len(scores)):
        for j in range(len(scores)):
            if wanted[i] < wanted[j]:
                key = (sources[i] == sources[j], wanted[i], wanted[j])
                right, pairs = counted.get(key, (0, 0))
                counted[key] = right + (scores[i] < scores[j]) + (scores[i] == scores[j]) / 2, pairs + 1
    return counted


@settings(max_examples=60, deadline=None)
@given(SMALL, st.integers(1, 6), st.integers(0, 1000))
def test_pairs_are_those_that_counting_finds(documents, how_many, seed):
    scores, labels = map(np.array, documents)
    wanted = labels.astype(int)
    sources = np.random.default_rng(seed).integers(0, how_many, len(scores)).astype(str)
    made = discriminate(scores, wanted, sources, "host", FEW)
    counted = pairs_by_hand(scores, wanted, sources)
    within = {key[1:]: of for key, of in counted.items() if key[0]}
    across = {key[1:]: of for key, of in counted.items() if not key[0]}

    def share(of):
        return sum(right for right, _ in of.values()) / sum(pairs for _, pairs in of.values()) if of else None

    assert (made.pairs_within, made.pairs_across) == tuple(sum(n for _, n in of.values()) for of in (within, across))
    assert made.sources == len(set(sources))
    for figure, expected in ((made.within, share(within)), (made.across, share(across))):
        assert figure.value == (None if expected is None else pytest.approx(expected))
    both = {key: n for key, (_, n) in within.items() if key in across}
    if both:
        alike = sum(n * across[key][0] / across[key][1] for key, n in both.items()) / sum(both.values())
        assert made.across_alike.value == pytest.approx(alike)
        assert made.difference.value == pytest.approx(share(within) - alike)
    else:
        assert made.across_alike.value is None


def hosts(n_hosts=60, pages=6, seed=0):
    """Hosts of unlike quality: labels vary among the pages of one, and more so from host to host."""
    random = np.random.default_rng(seed)
    host = np.repeat(np.arange(n_hosts), pages)
    level = random.uniform(0, 4, n_hosts)[host]
    labels = np.clip(np.round(level + random.normal(0, 1, len(host))), 0, 5).astype(int)
    return host.astype(str), level, labels


def test_a_head_that_knows_only_hosts_orders_their_pages_by_chance():
    host, level, labels = hosts()
    made = discriminate(level, labels, host, "host", Resampling(resamples=300))
    assert made.within.value == 0.5
    assert made.across_alike.low > 0.6
    assert made.difference.high < -0.1


def test_a_head_that_reads_pages_orders_them_within_a_host_as_well_as_across():
    host, _, labels = hosts()
    scores = labels + np.random.default_rng(1).normal(0, 1, len(labels))
    made = discriminate(scores, labels, host, "host", Resampling(resamples=300))
    assert made.within.low > 0.7
    assert made.across.value > made.across_alike.value  # across hosts labels are wider apart, which is easier
    assert made.difference.low < 0 < made.difference.high
    varied = sum(len(set(labels[host == name])) > 1 for name in set(host))
    assert (made.groups, made.sources, made.documents) == (varied, 60, 360)


def test_sources_of_one_document_each_have_no_pairs_within_and_say_so():
    made = discriminate(np.arange(3.0), np.arange(3), np.array(["a", "b", "c"]), "host", FEW)
    assert made.within.value is None
    assert made.within.reason == "there are no such pairs of documents whose labels differ"
    assert (made.across.value, made.across.reason) == (1.0, "no interval: 3 hosts; at least 10 are needed")


def test_unknown_sources_are_left_out():
    host, level, labels = hosts()
    scores = np.append(level, [0.0, 5.0])
    given = np.append(labels, [5, 0])
    made = measure(scores, given.astype(float), source=("host", [*host.tolist(), None, None])).discrimination
    assert made == discriminate(level, labels, host, "host", FEW)
    assert measure(scores, given.astype(float), source=("host", [None] * len(scores))).discrimination is None


# --- Two heads -------------------------------------------------------------------------------------------------------


def heads(n=300):
    ours, labels = documents(n, noise=0.5)
    theirs = np.clip(ours + np.random.default_rng(9).normal(0, 1.5, n), 0, 5)
    return HeadScores.of(ours, 0, 5), HeadScores.of(theirs, 0, 5), labels


def test_the_better_head_is_told_by_every_figure():
    ours, theirs, labels = heads()
    made = compare_heads(ours, theirs, labels, **RANGE)
    assert set(made.differences) == set(COMPARED_FIGURES)
    for name, difference in made.differences.items():
        assert difference.value == pytest.approx(made.ours[name].value - made.theirs[name].value)
        assert difference.low <= difference.value <= difference.high
        assert (difference.low > 0) if COMPARED_FIGURES[name] else (difference.high < 0)


def test_turned_round_the_differences_change_their_sign():
    ours, theirs, labels = heads()
    one, other = (compare_heads(a, b, labels, **RANGE, how=FEW) for a, b in ((ours, theirs), (theirs, ours)))
    assert one.ours == other.theirs
    for name, difference in one.differences.items():
        assert difference.value == pytest.approx(-other.differences[name].value)
        assert difference.low == pytest.approx(-other.differences[name].high, abs=0.2 * abs(difference.value))


def test_a_head_does_not_differ_from_itself():
    ours, _, labels = heads()
    for difference in compare_heads(ours, ours, labels, **RANGE, how=FEW).differences.values():
        assert (difference.low, difference.value, difference.high) == (0, 0, 0)


def test_only_documents_that_both_scored_are_compared():
    ours, theirs, labels = heads()
    gap = np.where(np.arange(300) < 100, math.nan, theirs.scores)
    made = compare_heads(ours, HeadScores.of(gap, 0, 5), labels, **RANGE, how=FEW)
    later = np.arange(300) >= 100
    assert made.documents == 200
    assert made == compare_heads(ours.taken(later), theirs.taken(later), labels[later], **RANGE, how=FEW)


def test_a_calibration_changes_classes_and_not_ranks():
    (scores, labels), (others, their_labels) = documents(600), documents(600, seed=1)
    scores, others = scores / 2 + 1, others / 2 + 1  # a head that draws all scores to the middle
    calibration = fit_calibration(others, their_labels, **RANGE, fitted_on="others", how=FEW)
    plain, calibrated = HeadScores.of(scores, 0, 5), HeadScores.of(scores, 0, 5, calibration)
    differences = compare_heads(calibrated, plain, labels, **RANGE, how=FEW).differences
    assert differences["spearman"].value == differences["mae"].value == 0
    assert differences["exact_agreement"].low > 0


def test_two_documents_are_too_few_to_compare():
    ours, theirs, labels = heads(2)
    made = compare_heads(ours, theirs, labels, **RANGE, how=FEW)
    assert {figure.reason for figure in made.differences.values()} == {"2 documents; at least 3 are needed"}
