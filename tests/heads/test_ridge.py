import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from ml_filter.heads import ridge
from ml_filter.heads.ridge import fit_ridge, label_weights


@pytest.fixture
def data():
    random = np.random.default_rng(1)
    embeddings = random.normal(3, 2, (300, 12)).astype(np.float32)
    labels = embeddings @ random.normal(size=12) + random.normal(0, 0.5, 300)
    return embeddings, labels.astype(np.float64)


def test_the_solution_equals_scikit_learn_at_the_chosen_penalty(data):
    embeddings, labels = data
    weights = label_weights(np.round(labels), 0.5)
    coefficients, bias, alpha = fit_ridge(embeddings, labels, weights, seed=0)
    scaler = StandardScaler().fit(embeddings)
    scikit_learn = Ridge(alpha=alpha).fit(scaler.transform(embeddings), labels, sample_weight=weights)
    assert embeddings @ coefficients + bias == pytest.approx(
        scikit_learn.predict(scaler.transform(embeddings)), abs=1e-4
    )


def test_the_solution_does_not_depend_on_the_block_size(data, monkeypatch):
    embeddings, labels = data
    one_block = fit_ridge(embeddings, labels, np.ones(300), seed=0)
    monkeypatch.setattr(ridge, "_ROWS", 7)
    assert fit_ridge(embeddings, labels, np.ones(300), seed=0)[0] == pytest.approx(one_block[0], abs=1e-9)


def test_a_constant_feature_is_ignored(data):
    embeddings, labels = data
    embeddings[:, 3] = 7.0
    coefficients, bias, _ = fit_ridge(embeddings, labels, np.ones(300), seed=0)
    assert np.isfinite(coefficients).all()
    assert np.isfinite(bias)


def test_label_weights_favour_rare_labels_and_have_mean_one():
    weights = label_weights(np.array([1.0, 1.0, 1.0, 4.0]), 0.5)
    assert weights.mean() == pytest.approx(1)
    assert weights[3] / weights[0] == pytest.approx(3**0.5)
    assert label_weights(np.array([1.0, 1.0, 4.0]), 0).tolist() == [1, 1, 1]
