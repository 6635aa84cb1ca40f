"""Figures without intervals: small examples, and any documents against scikit-learn and scipy."""

import math

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

from ml_filter.criterion import Criterion
from ml_filter.statistics.evaluation import evaluate_scores
from ml_filter.statistics.rounding import integer_scores

LABELS = st.sampled_from([[0.0], [2.0], [0.0, 1.0], [3.0, 4.0], [0.0, 1.0, 2.0, 3.0], [0.5, 2.5, 3.5], list(range(6))])
SCORES = st.one_of(st.floats(0, 5), st.integers(0, 10).map(lambda n: n / 2))


@st.composite
def scored_documents(draw):
    """Scores with ties and labels of some of the classes only."""
    scores = draw(st.one_of(st.lists(SCORES, min_size=1, max_size=40), st.just([2.0])))
    classes = draw(LABELS)
    labels = draw(st.lists(st.sampled_from(classes), min_size=len(scores), max_size=len(scores)))
    return np.array(scores), np.array(labels, dtype=float)


CRITERION = Criterion(name="quality", low=0, high=5, threshold=3)


def evaluate(scores, labels, **options):
    return evaluate_scores(np.array(scores, dtype=float), np.array(labels, dtype=float), CRITERION, **options)


def test_perfect_scores_get_perfect_figures():
    figures = evaluate([0.0, 1.0, 4.0, 5.0], [0.0, 1.0, 4.0, 5.0])
    assert figures.spearman == pytest.approx(1.0)
    assert figures.pearson == pytest.approx(1.0)
    assert (figures.mae, figures.mse, figures.rmse) == (0.0, 0.0, 0.0)
    assert (figures.accuracy, figures.macro_precision, figures.macro_recall, figures.macro_f1) == (1.0, 1.0, 1.0, 1.0)
    assert figures.f1_at_threshold == figures.thresholds[3].roc_auc == figures.thresholds[3].average_precision == 1.0
    assert figures.confusion == np.eye(4, dtype=int).tolist()


def test_halves_are_rounded_up():
    assert integer_scores(np.array([2.49, 2.5, 3.5, -1.0, 9.0]), 0, 5).tolist() == [2, 3, 4, 0, 5]


def test_class_that_is_only_predicted_has_an_f1_of_zero():
    figures = evaluate([1.0, 2.0], [1.0, 1.0])
    assert figures.classes[2].support == 0
    assert figures.classes[2].predicted == 1
    assert figures.classes[2].f1 == 0.0
    assert figures.macro_f1 == pytest.approx((2 / 3 + 0) / 2)


def test_undefined_precision_and_recall_are_none():
    figures = evaluate([1.0, 2.0], [1.0, 3.0])
    assert (figures.classes[3].precision, figures.classes[3].recall) == (None, 0.0)
    assert (figures.classes[2].precision, figures.classes[2].recall) == (0.0, None)
    assert (figures.precision_at_threshold, figures.recall_at_threshold, figures.f1_at_threshold) == (None, 0.0, 0.0)
    assert figures.thresholds[5].f1 is None
    assert "f1_at_5" not in figures.figures()


def test_without_a_good_label_precision_is_unknown_and_the_reason_is_given():
    figures = evaluate([3.0, 4.0, 1.0], [1.0, 2.0, 0.0])
    assert (figures.precision_at_threshold, figures.recall_at_threshold, figures.f1_at_threshold) == (None, None, None)
    assert (figures.thresholds[4].precision, figures.thresholds[4].f1) == (None, None)
    assert figures.too_few_labels == "too few labels: 0 of 3 at or above 3"
    assert evaluate([1.0] * 20, [0.0, 4.0] * 10).too_few_labels is None


def test_constant_labels_or_scores_have_no_correlation():
    for figures in (evaluate([1.0, 2.0, 3.0], [4.0, 4.0, 4.0]), evaluate([2.0, 2.0, 2.0], [1.0, 3.0, 4.0])):
        assert figures.spearman is None
        assert figures.pearson is None
    assert evaluate([2.0, 2.0, 2.0], [1.0, 3.0, 4.0]).thresholds[3].roc_auc == 0.5


def test_single_document_has_errors_but_no_correlation():
    figures = evaluate([2.0], [4.0])
    assert (figures.documents, figures.mae, figures.spearman, figures.accuracy) == (1, 2.0, None, 0.0)


def test_documents_without_a_score_are_counted_but_not_evaluated():
    figures = evaluate([1.0, math.nan, 4.0, 2.0], [1.0, 5.0, 4.0, math.nan])
    assert (figures.documents, figures.unscored, figures.mae) == (2, 1, 0.0)
    with pytest.raises(ValueError, match="no document"):
        evaluate([math.nan], [1.0])


def test_int_scores_give_the_classes_and_scores_the_ranks():
    figures = evaluate([1.0, 1.5, 2.0], [1.0, 3.0, 3.0], int_scores=np.array([1, 3, 3]))
    assert figures.accuracy == figures.f1_at_threshold == 1.0
    assert figures.mae == pytest.approx(2.5 / 3)


def test_flat_figures_have_the_prefix_and_are_finite():
    flat = evaluate([1.0, 2.0, 4.0], [1.0, 3.0, 3.0]).figures("gold_")
    assert {"gold_spearman", "gold_f1_class_3", "gold_f1_at_2", "gold_roc_auc_at_3", "gold_rmse"} <= set(flat)
    assert all(name.startswith("gold_") and math.isfinite(value) for name, value in flat.items())


@settings(max_examples=80, deadline=None)
@given(scored_documents())
@example((np.array([2.0]), np.array([2.0])))
@example((np.array([0.0, 1e-310]), np.array([0.0, 1.0])))
def test_figures_equal_those_of_scikit_learn_and_scipy(documents):
    scores, labels = documents
    figures = evaluate(scores, labels)
    predicted, wanted = integer_scores(scores, 0, 5), integer_scores(labels, 0, 5)
    classes = np.unique([predicted, wanted])
    assert figures.mae == pytest.approx(sklearn.metrics.mean_absolute_error(labels, scores))
    assert figures.mse == pytest.approx(sklearn.metrics.mean_squared_error(labels, scores))
    assert figures.rmse == pytest.approx(sklearn.metrics.root_mean_squared_error(labels, scores))
    assert figures.accuracy == pytest.approx(sklearn.metrics.accuracy_score(wanted, predicted))
    for name in ("precision", "recall", "f1"):
        score = getattr(sklearn.metrics, f"{name}_score")
        macro = score(wanted, predicted, average="macro", zero_division=0)
        assert getattr(figures, f"macro_{name}") == pytest.approx(macro)
        each = score(wanted, predicted, labels=classes, average=None, zero_division=np.nan)
        ours = [getattr(figures.classes[k], name) for k in classes]
        assert [math.nan if value is None else value for value in ours] == pytest.approx(each.tolist(), nan_ok=True)
    if len(classes) > 1:
        table = sklearn.metrics.confusion_matrix(wanted, predicted, labels=classes)
        assert figures.confusion == table.tolist()
    if figures.spearman is not None:
        assert figures.spearman == pytest.approx(stats.spearmanr(scores, labels).statistic)
    if figures.pearson is not None and min(scores.std(), labels.std()) > 1e-6:
        assert figures.pearson == pytest.approx(stats.pearsonr(scores, labels).statistic)


@settings(max_examples=50, deadline=None)
@given(scored_documents())
def test_figures_at_every_threshold_equal_those_of_scikit_learn(documents):
    scores, labels = documents
    figures = evaluate(scores, labels)
    predicted, wanted = integer_scores(scores, 0, 5), integer_scores(labels, 0, 5)
    assert list(figures.thresholds) == [1, 2, 3, 4, 5]
    for k, at_k in figures.thresholds.items():
        good, kept = wanted >= k, predicted >= k
        expected = {
            "precision": sklearn.metrics.precision_score(good, kept, zero_division=np.nan),
            "recall": sklearn.metrics.recall_score(good, kept, zero_division=np.nan),
            "f1": sklearn.metrics.f1_score(good, kept, zero_division=np.nan),
            "roc_auc": sklearn.metrics.roc_auc_score(good, scores) if 0 < good.sum() < len(good) else math.nan,
            "average_precision": (
                sklearn.metrics.average_precision_score(good, scores) if 0 < good.sum() < len(good) else math.nan
            ),
        }
        if not good.any():
            expected |= {"precision": math.nan, "f1": math.nan}
        ours = {name: math.nan if getattr(at_k, name) is None else getattr(at_k, name) for name in expected}
        assert ours == pytest.approx(expected, nan_ok=True)
        assert (at_k.good, at_k.kept) == (good.sum(), kept.sum())
