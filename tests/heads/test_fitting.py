"""Heads fitted on embeddings: against scikit-learn's solutions, and against what their names promise."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from scipy.stats import spearmanr
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from ml_filter.criterion import Criterion
from ml_filter.errors import InputError
from ml_filter.heads import fitting
from ml_filter.heads.balance import class_weights
from ml_filter.heads.config import HeadSettings
from ml_filter.heads.embeddings import Embeddings
from ml_filter.heads.fitting import fit_head, fit_ridge, predict, validation_figures
from ml_filter.statistics.evaluation import evaluate_scores

EDU = Criterion(name="edu", low=0, high=5, threshold=3)
ADULT = Criterion(name="adult", low=0, high=1, threshold=1)
N, WIDTH = 200, 6


@pytest.fixture
def embeddings():
    vectors = np.random.default_rng(0).normal(2, 3, (N, WIDTH)).astype(np.float32)
    return Embeddings(vectors, np.arange(N))


@pytest.fixture
def labels(embeddings):
    signal = embeddings[:] @ np.array([1, -1, 0.5, 0, 0, 0])
    return np.clip(2.5 + signal / signal.std(), 0, 5)[:, None]


def fitted(embeddings, labels, criteria=(EDU,), seed=0, **settings):
    return fit_head(embeddings, labels, np.ones_like(labels), criteria, HeadSettings(**settings), seed=seed)


@pytest.mark.parametrize(
    "settings",
    [
        {"model": "linear"},
        {"model": "kernel"},
        {"model": "mlp", "size": 32, "learning_rate": 0.01, "epochs": 15},
        {"model": "linear", "task": "classification", "learning_rate": 0.05},
        {"model": "linear", "task": "ordinal", "learning_rate": 0.05},
        {"model": "mlp", "size": 32, "task": "ordinal", "learning_rate": 0.01, "epochs": 20},
    ],
    ids=lambda settings: " ".join(map(str, settings.values())),
)
def test_every_kind_of_head_learns_to_rank_and_is_the_same_twice(embeddings, labels, settings):
    head = fitted(embeddings, labels, **settings)
    scores = predict(head, embeddings)[:, 0]
    assert spearmanr(scores, labels[:, 0]).statistic > 0.9
    again = fitted(embeddings, labels, **settings)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in head.state_dict().items())


@pytest.mark.parametrize("length", [1, 0.5])
def test_a_kernel_with_all_documents_as_landmarks_is_kernel_ridge_regression(embeddings, labels, length):
    head = fitted(embeddings, labels, model="kernel", length=length, balance=0)
    standard = (embeddings[:] - embeddings[:].mean(0)) / embeddings[:].std(0)
    kernel = np.exp(-cdist(standard, standard) / np.sqrt(2 * WIDTH) / length)
    # At some penalty; which one, leave-one-out decides.
    theirs = [
        KernelRidge(alpha=alpha, kernel="precomputed").fit(kernel, labels[:, 0] - labels.mean()).predict(kernel)
        for alpha in np.logspace(-2, 1.5, 15)
    ]
    ours = predict(head, embeddings)[:, 0]
    assert min(np.abs(ours - ours.mean() - (one - one.mean())).max() for one in theirs) < 0.0005


def test_fewer_landmarks_than_documents_rank_nearly_as_well(embeddings, labels):
    scores = predict(fitted(embeddings, labels, model="kernel", size=50), embeddings)[:, 0]
    assert spearmanr(scores, labels[:, 0]).statistic > 0.85


def test_several_criteria_are_fitted_at_once_each_on_the_labels_it_has(embeddings, labels):
    both = np.hstack([labels, (labels > 2.5).astype(float)])
    both[:100, 1] = np.nan
    together = predict(fitted(embeddings, both, (EDU, ADULT), model="linear"), embeddings)
    alone = predict(fitted(embeddings, labels, model="linear"), embeddings)
    half = embeddings.take(np.arange(100, N))
    other = predict(fitted(half, both[100:, 1:], (ADULT,), model="linear"), embeddings)
    assert together[:, 0] == pytest.approx(alone[:, 0], abs=1e-5)
    assert together[:, 1] == pytest.approx(other[:, 0], abs=1e-5)


@pytest.mark.parametrize("task", ["classification", "ordinal"])
def test_expected_scores_stay_in_the_range(embeddings, labels, task):
    scores = predict(fitted(embeddings, labels, model="linear", task=task), embeddings)
    assert scores.min() >= 0
    assert scores.max() <= 5


def test_a_head_that_is_trained_step_by_step_leaves_its_curve(embeddings, labels):
    settings = {"model": "mlp", "size": 8, "learning_rate": 0.01, "epochs": 10, "patience": 10, "warmup_share": 0.2}
    rows = fitted(embeddings, labels, **settings).history
    assert [row["epoch"] for row in rows] == list(range(1, 11))
    assert [row["step"] for row in rows] == list(range(3, 31, 3))  # 180 of 200 documents, 64 in a batch
    # Up to the rate in the first fifth of 30 steps, then down to nothing.
    assert [row["learning_rate"] for row in rows] == pytest.approx(
        [0.01 * min(s / 6, (30 - s) / 24) for s in range(3, 31, 3)]
    )
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert rows[-1]["eval_loss"] < rows[0]["eval_loss"]
    assert rows[-1]["eval_spearman"] > 0.8
    assert all(row["grad_norm"] > 0 for row in rows)


def test_the_cosine_falls_slowly_at_first(embeddings, labels):
    settings = {"model": "mlp", "size": 8, "epochs": 10, "patience": 10, "warmup_share": 0, "learning_rate": 1}
    linear, cosine = (
        [row["learning_rate"] for row in fitted(embeddings, labels, schedule=of, **settings).history]
        for of in ("linear", "cosine")
    )
    assert cosine[0] > linear[0]
    assert cosine[-2] < linear[-2]


@pytest.mark.parametrize("metric", ["spearman", "macro_f1", "loss"])
def test_the_weights_of_the_best_epoch_by_the_chosen_metric_are_kept(embeddings, labels, metric):
    settings = {"model": "mlp", "size": 8, "learning_rate": 0.05, "patience": 2, "metric": metric}
    head = fitted(embeddings, labels, **settings)
    figures = [row[f"eval_{metric}"] * (-1 if metric == "loss" else 1) for row in head.history]
    best = int(np.argmax(figures))
    assert len(head.history) in (50, best + 4)  # the end, or the third epoch without a better one
    held = np.sort(np.random.default_rng(0).permutation(N)[: N // 10])
    with torch.inference_mode():
        logits = head(torch.from_numpy(embeddings[held]))
    weights = torch.from_numpy(class_weights(labels, np.ones_like(labels), 0.5)[held]).float()
    kept = head.loss(logits, torch.from_numpy(labels[held]).float(), weights).item()
    assert kept == pytest.approx(head.history[best]["eval_loss"], rel=1e-5)


def test_validation_figures_equal_those_of_an_evaluation(labels):
    random = np.random.default_rng(0)
    both = np.hstack([labels, (labels > 2.5).astype(float)])
    both[random.random(both.shape) < 0.3] = np.nan
    scores = np.clip(np.nan_to_num(both, nan=1) + random.normal(0, 1, both.shape), -1, 6)
    figures = validation_figures(scores, both, (EDU, ADULT))
    whole = [evaluate_scores(scores[:, place], both[:, place], of) for place, of in enumerate((EDU, ADULT))]
    for name in ("spearman", "pearson", "mae", "macro_f1"):
        each = [getattr(one, name) for one in whole]
        assert [figures[f"{name}_edu"], figures[f"{name}_adult"]] == pytest.approx(each)
        assert figures[name] == pytest.approx(np.mean(each))


def test_undefined_figures_are_left_out_of_the_mean():
    labels = np.array([[1, np.nan], [2, np.nan], [4, np.nan]])
    figures = validation_figures(np.array([[3.0, 1], [3, 1], [3, 1]]), labels, (EDU, ADULT))
    assert np.isnan(figures["spearman"])
    assert figures["mae"] == figures["mae_edu"] == pytest.approx(4 / 3)


def test_a_metric_that_no_epoch_can_compute_is_an_error(embeddings):
    labels = np.full((N, 1), np.nan)
    labels[:3] = [[1], [2], [4]]  # none of them among those kept apart
    with pytest.raises(InputError, match=r"no epoch could compute spearman .* provide more documents"):
        fitted(embeddings, labels, model="mlp", size=8, metric="spearman")


def test_a_head_in_closed_form_has_no_curve(embeddings, labels):
    assert fitted(embeddings, labels, model="linear").history == []


def test_cut_points_of_an_ordinal_head_ascend(embeddings, labels):
    head = fitted(embeddings, labels, model="linear", task="ordinal", learning_rate=0.1)
    assert (head.cuts(0).diff() > 0).all()


@pytest.mark.parametrize("task", ["regression", "classification", "ordinal"])
def test_a_missing_label_adds_no_loss(embeddings, labels, task):
    head = fitted(embeddings, labels, model="linear", task=task)
    logits = head(torch.from_numpy(embeddings[:]))
    wanted = torch.from_numpy(labels).float()
    some = wanted.clone()
    some[50:] = torch.nan
    assert head.loss(logits, some) == pytest.approx(head.loss([of[:50] for of in logits], wanted[:50]).item(), rel=1e-5)


def test_class_weights_favour_rare_labels_and_ignore_missing_ones():
    labels = np.array([[1.0], [1.0], [1.0], [4.0], [np.nan]])
    weights = class_weights(labels, np.ones_like(labels), 0.5)[:, 0]
    assert weights[3] / weights[0] == pytest.approx(3**0.5)
    assert weights[:4].mean() == pytest.approx(1)
    assert weights[4] == 0
    assert class_weights(labels[:4], np.ones((4, 1)), 0).tolist() == [[1]] * 4


@pytest.mark.parametrize("model", ["mlp", "linear"])
def test_training_that_diverges_says_which_setting_to_lower(embeddings, labels, model):
    with pytest.raises(InputError, match=r"diverged.*lower head\.learning_rate \(1e\+30\)"):
        fitted(embeddings, labels, model=model, task="ordinal", learning_rate=1e30)


def test_a_kernel_of_nearly_the_same_embeddings_is_solved():
    random = np.random.default_rng(0)
    vectors = (1000 + random.normal(0, 1e-3, (N, WIDTH))).astype(np.float32)
    vectors[::2] = vectors[0]
    labels = random.integers(0, 6, (N, 1)).astype(float)
    scores = predict(
        fitted(Embeddings(vectors, np.arange(N)), labels, model="kernel"), Embeddings(vectors, np.arange(N))
    )
    assert np.isfinite(scores).all()


def test_the_windows_of_a_document_are_on_one_side_of_early_stopping():
    random = np.random.default_rng(0)
    vectors, labels = random.normal(0, 1, (60, 64)).astype(np.float32), random.integers(0, 6, (60, 1)).astype(float)
    owners = np.repeat(np.arange(60), 5)
    windows, wanted = Embeddings(vectors, owners), labels[owners]
    settings = HeadSettings(model="mlp", size=64, learning_rate=0.01, epochs=30, patience=30)

    def furthest(of):
        head = fit_head(windows, wanted, np.ones_like(wanted), (EDU,), settings, seed=0, owners=of)
        return np.abs(predict(head, windows) - wanted).max()

    # Labels that follow from nothing can be learnt by heart, but not those of documents that are kept apart.
    assert furthest(None) < 0.5
    assert furthest(owners) > 1


# --- Ridge regression ------------------------------------------------------------------------------------------------


@pytest.fixture
def data():
    random = np.random.default_rng(1)
    embeddings = random.normal(3, 2, (300, 12)).astype(np.float32)
    labels = embeddings @ random.normal(size=12) + random.normal(0, 0.5, 300)
    return embeddings, labels.astype(np.float64)


def test_the_solution_equals_scikit_learn_at_the_chosen_penalty(data):
    embeddings, labels = data
    weights = class_weights(labels[:, None], np.ones((300, 1)), 0.5)[:, 0]
    coefficients, bias, alpha = fit_ridge(embeddings, labels, weights, seed=0)
    scaler = StandardScaler().fit(embeddings)
    scikit_learn = Ridge(alpha=alpha).fit(scaler.transform(embeddings), labels, sample_weight=weights)
    assert embeddings @ coefficients + bias == pytest.approx(
        scikit_learn.predict(scaler.transform(embeddings)), abs=1e-4
    )


def test_the_solution_does_not_depend_on_the_block_size(data, monkeypatch):
    embeddings, labels = data
    one_block = fit_ridge(embeddings, labels, np.ones(300), seed=0)
    monkeypatch.setattr(fitting, "_ROWS", 7)
    assert fit_ridge(embeddings, labels, np.ones(300), seed=0)[0] == pytest.approx(one_block[0], abs=1e-9)


def test_a_constant_feature_is_ignored(data):
    embeddings, labels = data
    embeddings[:, 3] = 7.0
    coefficients, bias, _ = fit_ridge(embeddings, labels, np.ones(300), seed=0)
    assert np.isfinite(coefficients).all()
    assert np.isfinite(bias)
