"""Agreement of two raters: real ratings against a second library, properties that always hold, undefined figures."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nltk.metrics.agreement import AnnotationTask
from nltk.metrics.distance import binary_distance, interval_distance
from scipy.stats import spearmanr
from sklearn.metrics import cohen_kappa_score

from ml_filter.statistics import agreement as module
from ml_filter.statistics.agreement import PairAgreement, compare_pair, pair_figures
from ml_filter.statistics.intervals import Resampling
from ml_filter.statistics.metrics import COMPARED_FIGURES, PAIR_FIGURES
from ml_filter.statistics.rounding import round_scores
from tests.statistics.test_weighted import CLASSES, SCORES

FEW = Resampling(resamples=100)
NAN = math.nan


def pair(scores, *, threshold=3.0, score_range=None, resampling=FEW) -> PairAgreement:
    scores = np.asarray(scores, dtype=float)
    return compare_pair("a", "b", scores, score_range=score_range, threshold=threshold, resampling=resampling)


def values(scores, **options) -> dict[str, float | None]:
    return {name: figure.value for name, figure in pair(scores, **options).figures.items()}


def as_task(scores: np.ndarray, distance) -> AnnotationTask:
    cells = [(f"r{r}", f"d{d}", int(score)) for d, row in enumerate(scores) for r, score in enumerate(row)]
    return AnnotationTask(cells, distance=distance)


@pytest.mark.parametrize("raters", [[0, 1], [0, 2], [1, 2]])
def test_ratings_of_sixty_documents_by_people(shared_data, raters):
    lines = (shared_data / "edu_human_ratings_60x3.jsonl").read_text().splitlines()
    scores = np.array([json.loads(line)["scores"] for line in lines])[:, raters]
    x, y = scores.T
    nominal = as_task(scores, binary_distance)
    good_x, good_y = x >= 3, y >= 3
    signs_x, signs_y = np.sign(x[:, None] - x), np.sign(y[:, None] - y)
    table = pd.crosstab(x, y).reindex(index=range(6), columns=range(6), fill_value=0).to_numpy()
    f1 = 2 * table.diagonal() / (table.sum(0) + table.sum(1))
    expected = {
        "spearman": pd.DataFrame({"x": x, "y": y}).rank().corr().loc["x", "y"],
        "pearson": np.corrcoef(x, y)[0, 1],
        "kendall": (signs_x * signs_y).sum() / math.sqrt((signs_x**2).sum() * (signs_y**2).sum()),
        "kappa": nominal.kappa_pairwise("r0", "r1"),
        "kappa_linear": as_task(scores, lambda p, q: abs(p - q)).weighted_kappa(),
        "kappa_quadratic": as_task(scores, interval_distance).weighted_kappa(),
        "exact_agreement": nominal.Ao("r0", "r1"),
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
    agreement = pair(scores)
    assert {name: figure.value for name, figure in agreement.figures.items()} == pytest.approx(expected, abs=1e-6)
    assert list(agreement.figures) == list(PAIR_FIGURES)
    assert agreement.confusion == table.tolist()
    assert [agreement.classes[c].f1.value for c in range(6)] == pytest.approx(f1.tolist(), abs=1e-6)
    assert [agreement.classes[c].reference for c in range(6)] == table.sum(1).tolist()


def test_kappa_of_a_textbook_table():
    # 50 proposals, two readers: 20 both yes, 15 both no, 5 and 10 split; po = 0.7, pe = 0.5
    scores = [[1, 1]] * 20 + [[1, 0]] * 5 + [[0, 1]] * 10 + [[0, 0]] * 15
    assert values(scores)["kappa"] == pytest.approx(0.4)


def test_kendall_of_many_distinct_scores_uses_fewer_resamples(monkeypatch):
    scores = np.random.default_rng(0).normal(size=(150, 2)).cumsum(axis=1)
    exact = pair(scores, resampling=Resampling()).figures["kendall"]
    monkeypatch.setattr(module, "_KENDALL_ROWS", 100)
    sampled = pair(scores, resampling=Resampling()).figures["kendall"]
    assert (exact.resamples, sampled.resamples) == (1000, 200)
    assert sampled.value == pytest.approx(exact.value)
    width = exact.high - exact.low
    assert (sampled.low, sampled.high) == pytest.approx((exact.low, exact.high), abs=0.25 * width)


# --- Properties ------------------------------------------------------------------------------------------------------


@settings(max_examples=12, deadline=None)
@given(SCORES, st.randoms(use_true_random=False))
def test_order_of_documents_does_not_matter(scores, order):
    before, after = pair(scores), pair(scores[order.sample(range(len(scores)), len(scores))])
    for name, figure in before.figures.items():
        other = after.figures[name]
        assert (figure.value, figure.reason) == (pytest.approx(other.value), other.reason)
        assert (figure.low, figure.high) == (pytest.approx(other.low), pytest.approx(other.high))
    assert after.confusion == before.confusion


@settings(max_examples=12, deadline=None)
@given(CLASSES)
def test_rater_agrees_fully_with_itself(scores):
    same = values(scores[:, [0, 0]])
    varies = len(np.unique(scores[:, 0])) > 1
    for name in ("spearman", "kendall", "pearson", "kappa", "kappa_linear", "kappa_quadratic"):
        assert same[name] == (pytest.approx(1) if varies else None), name
    assert same["exact_agreement"] == same["macro_f1"] == 1
    assert same["mae"] == same["mse"] == 0


@settings(max_examples=12, deadline=None)
@given(SCORES)
def test_interval_contains_its_figure_and_undefined_figure_has_a_reason(scores):
    for figure in pair(scores).figures.values():
        if figure.value is None:
            assert figure.reason
            assert figure.low is figure.high is None
        elif figure.low is None:
            assert figure.reason.startswith("no interval")
        else:
            assert figure.low <= figure.value <= figure.high
            assert not figure.reason


@settings(max_examples=12, deadline=None)
@given(CLASSES, st.integers(1, 5))
def test_documents_that_only_one_rater_scored_do_not_count(scores, count):
    gaps = np.full((count, 2), NAN)
    gaps[:, 0] = 4
    assert pair(np.concatenate([scores, gaps])) == pair(scores)


@settings(max_examples=12, deadline=None)
@given(CLASSES)
def test_swapping_the_raters_swaps_precision_and_recall(scores):
    before, after = values(scores), values(scores[:, ::-1])
    for name in ("spearman", "kendall", "pearson", "kappa", "kappa_quadratic", "macro_f1", "f1_at_threshold", "mse"):
        assert before[name] == pytest.approx(after[name]), name
    assert before["precision_at_threshold"] == after["recall_at_threshold"]
    assert before["mean_difference"] == pytest.approx(-after["mean_difference"])
    assert np.array(pair(scores).confusion).T.tolist() == pair(scores[:, ::-1]).confusion


def differences_of(scores, threshold=3, resampling=FEW):
    figures, _ = pair_figures(scores, round_scores(scores), threshold, resampling)
    return {name: figures[name] for name in COMPARED_FIGURES}


def test_difference_of_two_raters_is_that_of_their_figures():
    random = np.random.default_rng(0)
    truth = random.integers(0, 6, 100)
    scores = np.stack([truth, truth + random.normal(0, 2, 100), truth + random.normal(0, 0.5, 100)], axis=1)
    differences = differences_of(scores)
    worse, better = (values(scores[:, [0, column]]) for column in (1, 2))
    for name, difference in differences.items():
        assert difference.value == pytest.approx(better[name] - worse[name]), name
        assert (difference.low > 0) if COMPARED_FIGURES[name] else (difference.high < 0)


def test_paired_interval_matches_a_plain_bootstrap():
    random = np.random.default_rng(1)
    gold_scores = random.integers(0, 6, 150).astype(float)
    noisy = [np.clip(gold_scores + random.normal(0, spread, 150), 0, 5).round() for spread in (1.5, 0.7)]
    scores = np.column_stack([gold_scores, *noisy])
    differences = differences_of(scores, resampling=Resampling(resamples=2000))

    def kappa(rows, column):
        return cohen_kappa_score(rows[:, 0].astype(int), rows[:, column].astype(int), weights="quadratic")

    drawn = [scores[random.integers(0, 150, 150)] for _ in range(1000)]
    for name, value in {
        "kappa_quadratic": lambda rows: kappa(rows, 2) - kappa(rows, 1),
        "mae": lambda rows: np.abs(rows[:, 2] - rows[:, 0]).mean() - np.abs(rows[:, 1] - rows[:, 0]).mean(),
    }.items():
        assert differences[name].value == pytest.approx(value(scores))
        low, high = np.quantile([value(rows) for rows in drawn], [0.025, 0.975])
        assert (differences[name].low, differences[name].high) == pytest.approx((low, high), abs=0.03)


# --- Undefined figures -----------------------------------------------------------------------------------------------


def test_constant_scores_have_no_correlation():
    figures = pair([[3, 1], [3, 2], [3, 4], [3, 5]]).figures
    for name in ("spearman", "kendall", "pearson"):
        assert figures[name].value is None
        assert figures[name].reason == "one of the raters gave every document the same score"
    assert figures["kappa"].value == 0  # agreement by chance, which is defined
    figures = pair([[3, 3]] * 5).figures
    assert (figures["kappa"].value, figures["kappa"].reason) == (None, "the ratings do not vary")
    assert figures["exact_agreement"].value == 1


def test_class_that_the_rater_never_gave_has_no_precision():
    agreement = pair([[0, 0], [0, 1], [1, 0], [2, 1]])
    assert agreement.classes[2].precision.value is None
    assert agreement.classes[2].precision.reason == "the rater never gave it"
    assert agreement.classes[2].recall.value == 0
    assert sorted(agreement.classes) == [0, 1, 2]


def test_two_documents_are_too_few():
    two = pair([[1, 2], [3, 4], [NAN, 2]])
    assert two.documents == 2
    assert {figure.reason for figure in two.figures.values()} == {"too few documents (2); at least 3 are required"}


def test_long_scales_have_no_table_of_classes():
    scores = np.random.default_rng(0).uniform(0, 100, (40, 2))
    agreement = pair(scores, threshold=50)
    assert agreement.figures["kappa"].reason == "scores span more than 21 whole numbers"
    assert (agreement.classes, agreement.confusion) == ({}, [])
    assert agreement.figures["spearman"].value == pytest.approx(spearmanr(*scores.T).statistic)
    assert agreement.figures["f1_at_threshold"].value is not None
    three = np.column_stack([scores, scores[:, 0]])
    differences = differences_of(three, threshold=50)
    assert differences["macro_f1"].reason == "scores span more than 21 whole numbers"
    assert differences["mae"].value < 0


def test_classes_are_scores_rounded_half_up_and_clamped():
    agreement = pair([[0.5, 1], [2.5, 3], [5.6, 5], [-0.2, 0]], score_range=(0, 5))
    assert agreement.figures["exact_agreement"].value == 1
    assert sorted(agreement.classes) == [0, 1, 3, 5]
    assert agreement.figures["mae"].value == pytest.approx((0.5 + 0.5 + 0.6 + 0.2) / 4)
