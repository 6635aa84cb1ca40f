"""Agreement figures: published examples, a second library, and laws that hold for all ratings."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from nltk.metrics.agreement import AnnotationTask
from nltk.metrics.distance import binary_distance, interval_distance
from scipy import stats

from ml_filter.statistics import agreement as metrics
from ml_filter.statistics.agreement import (
    GROUP_FIGURES,
    PAIR_FIGURES,
    GroupAgreement,
    PairAgreement,
    Resampling,
    compare_group,
    compare_pair,
    share_failed,
)

FEW = Resampling(resamples=100)
NAN = math.nan


def pair(scores, *, threshold=3.0, score_range=None, how=FEW) -> PairAgreement:
    scores = np.asarray(scores, dtype=float)
    return compare_pair("a", "b", scores, score_range=score_range, threshold=threshold, how=how)


def group(scores, *, how=FEW) -> GroupAgreement:
    scores = np.asarray(scores, dtype=float)
    names = [f"r{i}" for i in range(scores.shape[1])]
    return compare_group(names, scores, score_range=None, how=how)


def values(agreement) -> dict[str, float | None]:
    return {name: figure.value for name, figure in agreement.figures.items()}


# --- Published examples ----------------------------------------------------------------------------------------------

KRIPPENDORFF_2011 = [  # four observers, twelve units; Computing Krippendorff's Alpha-Reliability, section E
    [1, 2, 3, 3, 2, 1, 4, 1, 2, NAN, NAN, NAN],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NAN, 3],
    [NAN, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NAN],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NAN],
]
FLEISS_1971 = [  # 30 patients, 6 psychiatrists: how many gave each of five diagnoses; table 1
    "00060 03003 01401 00006 03030 20400 00402 20310 20040 00006 10050 11040 03300 10050 02031",
    "00501 30012 51000 02040 10203 00006 01050 02013 20040 10041 05010 40002 02040 10500 00006",
]
SHROUT_FLEISS_1979 = [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]]  # table 2


def test_krippendorffs_own_example():
    figures = group(np.transpose(KRIPPENDORFF_2011)).figures
    assert figures["alpha_nominal"].value == pytest.approx(0.743, abs=5e-4)
    assert figures["alpha_ordinal"].value == pytest.approx(0.815, abs=5e-4)
    assert figures["alpha_interval"].value == pytest.approx(0.849, abs=5e-4)
    assert figures["alpha_nominal"].documents == 11  # the twelfth has one rating, which pairs with none


def test_fleiss_own_example():
    ratings = [[k for k, n in enumerate(map(int, row)) for _ in range(n)] for row in " ".join(FLEISS_1971).split()]
    assert group(ratings).figures["fleiss_kappa"].value == pytest.approx(0.430, abs=5e-4)


def test_shrout_and_fleiss_own_example():
    figures = values(group(SHROUT_FLEISS_1979))
    published = {"icc_1_1": 0.17, "icc_2_1": 0.29, "icc_3_1": 0.71, "icc_1_k": 0.44, "icc_2_k": 0.62, "icc_3_k": 0.91}
    assert {name: round(figures[name], 2) for name in published} == published


def test_cohens_kappa_of_a_textbook_table():
    # 50 proposals, two readers: 20 both yes, 15 both no, 5 and 10 split; po = 0.7, pe = 0.5
    scores = [[1, 1]] * 20 + [[1, 0]] * 5 + [[0, 1]] * 10 + [[0, 0]] * 15
    assert values(pair(scores))["kappa"] == pytest.approx(0.4)


# --- A second, independent computation -------------------------------------------------------------------------------


def anova_icc(scores: np.ndarray) -> dict[str, float]:
    """ICC from the mean squares of statsmodels' analysis of variance."""
    from statsmodels.formula.api import ols
    from statsmodels.stats.anova import anova_lm

    n, k = scores.shape
    rows = [{"document": d, "rater": r, "score": scores[d, r]} for d in range(n) for r in range(k)]
    table = anova_lm(ols("score ~ C(document) + C(rater)", pd.DataFrame(rows)).fit())
    bms, jms, ems = table["mean_sq"]
    wms = table["sum_sq"].iloc[1:].sum() / (n * (k - 1))
    return {
        "icc_1_1": (bms - wms) / (bms + (k - 1) * wms),
        "icc_2_1": (bms - ems) / (bms + (k - 1) * ems + k * (jms - ems) / n),
        "icc_3_1": (bms - ems) / (bms + (k - 1) * ems),
        "icc_1_k": (bms - wms) / bms,
        "icc_2_k": (bms - ems) / (bms + (jms - ems) / n),
        "icc_3_k": (bms - ems) / bms,
    }


def task_of(scores: np.ndarray, distance) -> AnnotationTask:
    cells = [(f"r{r}", f"d{d}", int(score)) for d, row in enumerate(scores) for r, score in enumerate(row)]
    return AnnotationTask(cells, distance=distance)


def ordinal_alpha_by_hand(scores: np.ndarray) -> float:
    """By the definition: all pairs of ratings within documents against all pairs there are."""
    flat = scores.ravel()
    counts = {c: int((flat == c).sum()) for c in np.unique(flat)}

    def distance(a, b):
        between = sum(n for c, n in counts.items() if min(a, b) <= c <= max(a, b))
        return (between - (counts[a] + counts[b]) / 2) ** 2 if a != b else 0

    k = scores.shape[1]
    observed = sum(distance(a, b) for row in scores for a in row for b in row) / (k - 1)
    chance = sum(distance(a, b) for a in flat for b in flat) / (len(flat) - 1)
    return 1 - observed / chance


def test_sixty_documents_rated_by_three_people_give_what_other_libraries_compute(shared_data):
    lines = (shared_data / "edu_human_ratings_60x3.jsonl").read_text().splitlines()
    scores = np.array([json.loads(line)["scores"] for line in lines])
    assert scores.shape == (60, 3)
    nominal, interval = task_of(scores, binary_distance), task_of(scores, interval_distance)
    expected = {
        "fleiss_kappa": nominal.pi(),  # nltk's multi_kappa is that of Davies and Fleiss
        "alpha_nominal": nominal.alpha(),
        "alpha_ordinal": ordinal_alpha_by_hand(scores),
        "alpha_interval": interval.alpha(),
        **anova_icc(scores),
    }
    made = group(scores)
    assert values(made) == pytest.approx(expected, abs=1e-6)
    assert {figure.documents for figure in made.figures.values()} == {60}
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert_pair_is_confirmed(scores[:, [a, b]], task_of(scores, binary_distance), f"r{a}", f"r{b}")


def assert_pair_is_confirmed(scores, nominal, a, b):
    x, y = scores.T
    frame = pd.DataFrame({"x": x, "y": y})
    linear = task_of(scores, lambda p, q: abs(p - q)).weighted_kappa()
    quadratic = task_of(scores, interval_distance).weighted_kappa()
    good_x, good_y = x >= 3, y >= 3
    signs_x, signs_y = np.sign(x[:, None] - x), np.sign(y[:, None] - y)
    table = pd.crosstab(x, y).reindex(index=range(6), columns=range(6), fill_value=0).to_numpy()
    f1 = 2 * table.diagonal() / (table.sum(0) + table.sum(1))
    expected = {
        "spearman": frame.rank().corr().loc["x", "y"],
        "pearson": np.corrcoef(x, y)[0, 1],
        "kendall": (signs_x * signs_y).sum() / math.sqrt((signs_x**2).sum() * (signs_y**2).sum()),
        "kappa": nominal.kappa_pairwise(a, b),
        "kappa_linear": linear,
        "kappa_quadratic": quadratic,
        "exact_agreement": nominal.Ao(a, b),
        "macro_f1": f1.mean(),
        "agreement_at_threshold": (good_x == good_y).mean(),
        "precision_at_threshold": good_x[good_y].mean(),
        "recall_at_threshold": good_y[good_x].mean(),
        "f1_at_threshold": 2 * (good_x & good_y).sum() / (good_x.sum() + good_y.sum()),
        "macro_f1_at_threshold": np.mean(
            [2 * (p & q).sum() / (p.sum() + q.sum()) for p, q in ((good_x, good_y), (~good_x, ~good_y))]
        ),
        "mae": np.abs(x - y).mean(),
        "mse": ((x - y) ** 2).mean(),
        "mean_difference": y.mean() - x.mean(),
    }
    made = pair(scores)
    assert values(made) == pytest.approx(expected, abs=1e-6)
    assert made.confusion == table.tolist()
    assert [made.classes[c].f1.value for c in range(6)] == pytest.approx(f1.tolist(), abs=1e-6)
    assert [made.classes[c].reference for c in range(6)] == table.sum(1).tolist()


WHOLE = hnp.arrays(np.float64, st.tuples(st.integers(3, 40), st.just(2)), elements=st.integers(0, 5).map(float))
ANY = hnp.arrays(
    np.float64, st.tuples(st.integers(3, 40), st.just(2)), elements=st.integers(0, 50).map(lambda n: n / 10)
)
JURY = hnp.arrays(
    np.float64,
    st.tuples(st.integers(3, 25), st.integers(2, 4)),
    elements=st.sampled_from([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, NAN]),
)


@settings(max_examples=40, deadline=None)
@given(ANY)
def test_what_intervals_are_made_of_is_what_the_libraries_compute(scores):
    """The weighted statistics, given each document once, equal the libraries' figures."""
    ones = np.ones((1, len(np.unique(scores, axis=0))))
    distinct, counts = np.unique(scores, axis=0, return_counts=True)
    weights = ones * counts
    mine = metrics.rank_and_distance(distinct, weights) | metrics._kendall(distinct, weights)
    for name, array in mine.items():
        if name in metrics._LIBRARY and not np.isnan(array[0]):
            assert array[0] == pytest.approx(metrics._LIBRARY[name](scores), abs=1e-9), name


@settings(max_examples=40, deadline=None)
@given(WHOLE)
def test_so_are_those_of_classes(scores):
    distinct, counts = np.unique(scores, axis=0, return_counts=True)
    weights = counts[None].astype(float)
    mine = metrics.table_statistic(np.arange(scores.min(), scores.max() + 1))(distinct, weights)
    binary = (scores >= 3).astype(float)
    cells, times = np.unique(binary, axis=0, return_counts=True)
    checked = {name: (array[0], scores) for name, array in mine.items()}
    checked |= {n: (a[0], binary) for n, a in metrics.at_threshold(cells, times[None].astype(float)).items()}
    for name, (value, rows) in checked.items():
        if name in metrics._LIBRARY and not np.isnan(value):
            assert value == pytest.approx(metrics._LIBRARY[name](rows), abs=1e-9), name


@settings(max_examples=40, deadline=None)
@given(JURY)
def test_and_those_of_a_jury(scores):
    twice = scores[np.isfinite(scores).sum(axis=1) >= 2]
    counts = metrics._class_counts(twice, np.arange(6.0))
    ones = np.ones((1, len(twice)))
    if len(twice) == 0:
        return
    for name, array in metrics._alpha_of_classes(counts, ones).items():
        if not np.isnan(array[0]):
            assert array[0] == pytest.approx(metrics._LIBRARY[name](counts), abs=1e-9), name
    (interval,) = metrics._alpha_interval(twice, ones)["alpha_interval"]
    if not np.isnan(interval):
        from krippendorff import alpha

        assert interval == pytest.approx(alpha(twice.T, level_of_measurement="interval"), abs=1e-9)
    complete = np.isfinite(twice).all(axis=1)
    if complete.any():
        (kappa,) = metrics._fleiss(counts[complete], ones[:, complete])["fleiss_kappa"]
        if not np.isnan(kappa):
            assert kappa == pytest.approx(metrics._LIBRARY["fleiss_kappa"](counts[complete]), abs=1e-9)


def test_intervals_are_those_of_resampled_documents():
    """Against a plain bootstrap: draw documents, compute by library, take percentiles."""
    random = np.random.default_rng(3)
    truth = random.integers(0, 6, 80)
    scores = np.stack([truth, (truth + random.integers(-1, 3, 80)).clip(0, 5)], axis=1).astype(float)
    made = pair(scores, how=Resampling(resamples=2000)).figures
    drawn = scores[random.integers(0, 80, (2000, 80))]
    plain = {
        "spearman": [stats.spearmanr(*one.T).statistic for one in drawn],
        "kappa_quadratic": [sklearn.metrics.cohen_kappa_score(*one.T, weights="quadratic") for one in drawn[:1000]],
        "mae": np.abs(drawn[:, :, 0] - drawn[:, :, 1]).mean(axis=1),
    }
    for name, figures in plain.items():
        low, high = np.quantile(figures, [0.025, 0.975])
        assert (made[name].low, made[name].high) == pytest.approx((low, high), abs=0.15 * (high - low)), name
        assert made[name].resamples == 2000


def test_kendall_of_many_distinct_scores_is_resampled_less_often_to_the_same_interval(monkeypatch):
    scores = np.random.default_rng(0).normal(size=(150, 2)).cumsum(axis=1)
    exact = pair(scores, how=Resampling(resamples=1000)).figures["kendall"]
    monkeypatch.setattr(metrics, "_KENDALL_ROWS", 100)
    sampled = pair(scores, how=Resampling(resamples=1000)).figures["kendall"]
    assert (exact.resamples, sampled.resamples) == (1000, 200)
    assert sampled.value == exact.value
    width = exact.high - exact.low
    assert (sampled.low, sampled.high) == pytest.approx((exact.low, exact.high), abs=0.25 * width)


# --- Laws ------------------------------------------------------------------------------------------------------------


@settings(max_examples=12, deadline=None)
@given(ANY, st.randoms(use_true_random=False))
def test_the_order_of_documents_changes_nothing(scores, order):
    shuffled = scores[order.sample(range(len(scores)), len(scores))]
    before, after = pair(scores), pair(shuffled)
    for name, figure in before.figures.items():
        other = after.figures[name]
        assert (figure.value, figure.reason) == (pytest.approx(other.value), other.reason)
        assert (figure.low, figure.high) == (pytest.approx(other.low), pytest.approx(other.high))
    assert after.confusion == before.confusion


@settings(max_examples=12, deadline=None)
@given(JURY, st.randoms(use_true_random=False))
def test_the_order_of_raters_changes_no_figure_of_a_group(scores, order):
    shuffled = scores[:, order.sample(range(scores.shape[1]), scores.shape[1])]
    before, after = values(group(scores)), values(group(shuffled))
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert value == pytest.approx(after[name]), name


@settings(max_examples=12, deadline=None)
@given(WHOLE)
def test_a_rater_agrees_fully_with_itself(scores):
    same = pair(scores[:, [0, 0]])
    varies = len(np.unique(scores[:, 0])) > 1
    for name in ("spearman", "kendall", "pearson", "kappa", "kappa_linear", "kappa_quadratic"):
        assert same.figures[name].value == (pytest.approx(1) if varies else None), name
    assert same.figures["exact_agreement"].value == same.figures["macro_f1"].value == 1
    assert same.figures["mae"].value == same.figures["mse"].value == 0
    for name, figure in group(scores[:, [0, 0, 0]]).figures.items():
        assert figure.value == (pytest.approx(1) if varies else None), name


@settings(max_examples=12, deadline=None)
@given(ANY, JURY)
def test_an_interval_holds_its_figure_and_a_missing_figure_has_a_reason(two, jury):
    for figure in [*pair(two).figures.values(), *group(jury).figures.values()]:
        if figure.value is None:
            assert figure.reason
            assert figure.low is figure.high is None
        elif figure.low is None:
            assert figure.reason.startswith("no interval")
        else:
            assert figure.low <= figure.value <= figure.high
            assert not figure.reason


@settings(max_examples=12, deadline=None)
@given(WHOLE, st.integers(1, 5))
def test_documents_without_a_score_of_both_change_nothing(scores, count):
    gaps = np.full((count, 2), NAN)
    gaps[:, 0] = 4
    assert pair(np.concatenate([scores, gaps])) == pair(scores)


@settings(max_examples=12, deadline=None)
@given(WHOLE)
def test_exchanging_the_raters_exchanges_precision_and_recall(scores):
    one, other = pair(scores), pair(scores[:, ::-1])
    for name in ("spearman", "kendall", "pearson", "kappa", "kappa_quadratic", "macro_f1", "f1_at_threshold", "mse"):
        assert one.figures[name].value == pytest.approx(other.figures[name].value), name
    assert one.figures["precision_at_threshold"].value == other.figures["recall_at_threshold"].value
    assert one.figures["mean_difference"].value == pytest.approx(-other.figures["mean_difference"].value)
    assert np.array(one.confusion).T.tolist() == other.confusion


# --- What is not defined ---------------------------------------------------------------------------------------------


def test_constant_scores_have_no_correlation():
    figures = pair([[3, 1], [3, 2], [3, 4], [3, 5]]).figures
    for name in ("spearman", "kendall", "pearson"):
        assert (figures[name].value, figures[name].reason) == (
            None,
            "one of the raters gave every document the same score",
        )
    assert figures["kappa"].value == 0  # chance agreement: that is known
    figures = pair([[3, 3]] * 5).figures
    assert (figures["kappa"].value, figures["kappa"].reason) == (None, "the ratings do not vary")
    assert figures["exact_agreement"].value == 1


def test_a_class_nobody_gave_has_no_precision_and_one_never_hit_has_none():
    made = pair([[0, 0], [0, 1], [1, 0], [2, 1]])
    assert (made.classes[2].precision.value, made.classes[2].precision.reason) == (None, "the rater never gave it")
    assert made.classes[2].recall.value == 0
    assert sorted(made.classes) == [0, 1, 2]


def test_too_few_documents_give_no_figure():
    two = pair([[1, 2], [3, 4], [NAN, 2]])
    assert two.documents == 2
    assert {f.reason for f in two.figures.values()} == {"2 documents; at least 3 are needed"}
    assert {f.value for f in group([[1, 2], [NAN, 4]]).figures.values()} == {None}
    no_document_of_all_three = group([[1, 2, NAN], [3, NAN, 3], [NAN, 4, 5], [1, 1, NAN]]).figures
    assert no_document_of_all_three["icc_2_1"].reason == "0 documents; at least 3 are needed"
    assert no_document_of_all_three["alpha_nominal"].value is not None


def test_a_figure_that_most_resamples_leave_undefined_has_no_interval():
    lonely = pair([[0, 0]] * 200 + [[5, 5], [0, 5], [5, 0]]).figures["spearman"]
    assert lonely.low is not None
    once_each = pair([[0, 0]] * 40 + [[0, 1], [1, 0]]).figures["spearman"]
    assert once_each.value == pytest.approx(-1 / 41)
    assert once_each.low is once_each.high is None
    assert once_each.reason == f"no interval: the figure is undefined in {100 - once_each.resamples} of 100 resamples"


@given(st.integers(1, 30), st.integers(0, 30), st.integers(0, 3), st.sampled_from([0.8, 0.95]))
@settings(max_examples=20, deadline=None)
def test_a_share_of_0_or_1_is_as_uncertain_as_its_documents_are_few(good, bad, wrong, confidence):
    from scipy.stats import binomtest

    how = Resampling(resamples=100, confidence=confidence)
    figures = pair([[5, 5]] * good + [[0, 0]] * (bad + 10) + [[0, 4]] * wrong, how=how).figures
    of_all = {"recall_at_threshold": good} | ({} if wrong else {"precision_at_threshold": good})
    of_all |= {} if wrong else {"exact_agreement": good + bad + 10, "agreement_at_threshold": good + bad + 10}
    for name, count in of_all.items():
        exact = binomtest(count, count).proportion_ci(confidence, method="exact")
        figure = figures[name]
        assert figure.value == 1
        if figure.low is not None:  # else it is undefined in most resamples
            assert (figure.low, figure.high) == (pytest.approx(exact.low), 1), name
    none = share_failed(np.ones(good + 10), np.zeros(good + 10, dtype=bool), how)
    assert none.high == pytest.approx(binomtest(0, good + 10).proportion_ci(confidence, method="exact").high)


def test_f1_of_all_hits_or_none_goes_by_the_documents_that_either_called_good():
    hits = pair([[5, 5]] * 10 + [[0, 0]] * 30).figures["f1_at_threshold"]
    shared = 0.025 ** (1 / 10)
    assert (hits.value, hits.low, hits.high) == (1, pytest.approx(2 * shared / (1 + shared)), 1)
    misses = pair([[5, 0]] * 5 + [[0, 5]] * 5 + [[0, 0]] * 30).figures["f1_at_threshold"]
    assert (misses.value, misses.low, misses.high) == (0, 0, pytest.approx(2 * (1 - shared) / (2 - shared)))


def test_an_interval_can_ask_for_the_figure_in_more_of_the_resamples():
    scores = [[0, 0]] * 39 + [[5, 5]]
    half = pair(scores, how=Resampling(resamples=500)).figures["spearman"]
    assert (half.low, half.high) == (pytest.approx(1), 1)
    strict = pair(scores, how=Resampling(resamples=500, defined=0.95)).figures["spearman"]
    assert (strict.value, strict.low) == (pytest.approx(1), None)
    assert "no interval: the figure is undefined in" in strict.reason


def test_the_share_that_failed_is_of_the_documents_that_were_asked_about():
    scores, failed = np.array([1.0, NAN, 2.0, NAN]), np.array([False, True, False, False])
    share = share_failed(np.tile(scores, 5), np.tile(failed, 5), FEW)
    assert (share.value, share.documents) == (pytest.approx(1 / 3), 15)
    assert share.low < share.value < share.high


def test_few_documents_give_figures_but_no_interval():
    nine = pair([[i % 5, i % 4] for i in range(9)]).figures
    assert nine["spearman"].value is not None
    assert {f.reason for f in nine.values()} == {"no interval: 9 documents; at least 10 are needed"}
    assert {f.reason for f in pair([[i % 5, i % 4] for i in range(10)]).figures.values()} == {None}


def test_an_interval_is_widened_to_its_figure_where_resampling_is_biased():
    # Twenty ratings that all differ: a resample repeats some, so chance disagreement, and alpha, can only be lower.
    figure = group([[2 * i, 2 * i + 1] for i in range(10)]).figures["alpha_nominal"]
    assert figure.value == pytest.approx(0)
    assert figure.low < figure.high == figure.value


def test_scales_too_long_for_a_table_keep_the_other_figures():
    random = np.random.default_rng(0)
    scores = random.uniform(0, 100, (40, 2))
    made = pair(scores, threshold=50)
    assert made.figures["kappa"].reason == "scores span more than 21 whole numbers"
    assert (made.classes, made.confusion) == ({}, [])
    assert made.figures["spearman"].value == pytest.approx(stats.spearmanr(*scores.T).statistic)
    assert made.figures["f1_at_threshold"].value is not None
    together = group(scores)
    assert together.figures["alpha_ordinal"].value is None
    assert together.figures["alpha_interval"].value is not None


def test_classes_are_scores_rounded_half_up_and_clamped():
    made = pair([[0.5, 1], [2.5, 3], [5.6, 5], [-0.2, 0]], score_range=(0, 5))
    assert made.figures["exact_agreement"].value == 1
    assert sorted(made.classes) == [0, 1, 3, 5]
    assert made.figures["mae"].value == pytest.approx((0.5 + 0.5 + 0.6 + 0.2) / 4)


def test_weights_of_kappa_go_by_the_scores_not_by_their_order():
    # With 2, 3 and 4 unused, 1 against 5 still counts as four steps.
    scores = [[0, 0], [1, 1], [5, 5], [1, 5], [0, 1], [5, 5]]
    distance = (np.subtract(*np.transpose(scores)) ** 2).mean()
    chance = np.mean([(a - b) ** 2 for a, _ in scores for _, b in scores])
    assert pair(scores).figures["kappa_quadratic"].value == pytest.approx(1 - distance / chance)


def test_every_figure_has_a_name_for_people():
    assert pair([[1, 2], [2, 3], [3, 3]]).figures.keys() == PAIR_FIGURES.keys()
    assert group([[1, 2], [2, 3], [3, 3]]).figures.keys() == GROUP_FIGURES.keys()
