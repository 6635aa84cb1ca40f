import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.metrics import f1_score, mean_absolute_error

from ml_filter.heads.metrics import evaluate_scores, integer_scores

scores = st.lists(st.floats(0, 5), min_size=3, max_size=50)


def evaluate(predicted, wanted, threshold=3.0):
    return evaluate_scores(np.array(predicted), np.array(wanted), low=0, high=5, threshold=threshold)


def test_perfect_scores_get_perfect_figures():
    figures = evaluate([0.0, 1.0, 4.0, 5.0], [0.0, 1.0, 4.0, 5.0])
    assert figures.spearman == pytest.approx(1.0)
    assert (figures.mae, figures.accuracy, figures.macro_f1, figures.f1_at_threshold) == (0.0, 1.0, 1.0, 1.0)


def test_halves_round_up_so_that_int_score_3_means_score_of_at_least_2_5():
    assert integer_scores(np.array([2.49, 2.5, 3.5, -1.0, 9.0]), 0, 5).tolist() == [2, 3, 4, 0, 5]


def test_a_class_that_is_only_predicted_counts_with_an_f1_of_zero():
    figures = evaluate([1.0, 2.0], [1.0, 1.0])
    assert figures.classes[2].support == 0
    assert figures.classes[2].f1 == 0.0
    assert figures.macro_f1 == pytest.approx((2 / 3 + 0) / 2)


def test_spearman_is_unknown_where_all_labels_are_alike():
    assert evaluate([1.0, 2.0, 3.0], [4.0, 4.0, 4.0]).spearman is None


@given(scores, st.randoms())
def test_figures_agree_with_scikit_learn_and_scipy(predicted, random):
    wanted = [random.choice([0.0, 1.0, 2.0, 3.0]) for _ in predicted]
    figures = evaluate(predicted, wanted)
    rounded = integer_scores(np.array(predicted), 0, 5)
    assert figures.mae == pytest.approx(mean_absolute_error(wanted, predicted))
    assert figures.macro_f1 == pytest.approx(f1_score(np.array(wanted).astype(int), rounded, average="macro"))
    if figures.spearman is not None:
        assert figures.spearman == pytest.approx(spearmanr(predicted, wanted).statistic)
