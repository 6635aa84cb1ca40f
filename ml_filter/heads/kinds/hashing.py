"""The hashing head: a linear regression on hashed words and word pairs. The fastest kind; needs no encoder."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from ml_filter.errors import InputError
from ml_filter.heads.config import EngineConfig
from ml_filter.heads.fitting import class_weights
from ml_filter.heads.hashing import HashedDocuments, HashingSettings, hash_texts
from ml_filter.heads.info import CONFIG_NAME, WEIGHTS_NAME, HeadInfo, read_weights, write_config
from ml_filter.heads.kinds.base import Head, Trainer
from ml_filter.heads.sparse_ridge import document_lengths, fit_sparse_ridge
from ml_filter.statistics.intervals import Array

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix


@dataclass(frozen=True)
class HashingModel:
    """Regressions on hashed features, one for each criterion.

    `weights` and `idf` are [criteria, features], float32, the idf a factor of the weights; `bias` is [criteria].
    """

    settings: HashingSettings
    weights: NDArray[np.float32]
    idf: NDArray[np.float32]
    bias: NDArray[np.float32]

    @classmethod
    def fit(cls, features: csr_matrix, labels: Array, weights: Array, settings: HashingSettings, *, seed: int) -> Self:
        """Fit to labels [n, criteria] with weights [n, criteria]; labels that are nan or have weight 0 are ignored."""
        weights = np.where(np.isnan(labels), 0, weights)
        fits = [fit_sparse_ridge(features, labels[:, c], weights[:, c], seed=seed) for c in range(labels.shape[1])]
        return cls(
            settings,
            np.stack([fit.coefficients for fit in fits]),
            np.stack([fit.idf for fit in fits]),
            np.array([fit.bias for fit in fits], np.float32),
        )

    def scores(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Scores [texts, criteria], not clamped; the bias for a text without a known word."""
        return self.scores_of(hash_texts(texts, self.settings))

    def scores_of(self, features: csr_matrix) -> NDArray[np.float32]:
        """Scores [n, criteria] of features as `hash_texts` returns them."""
        columns = [
            (features @ weights) / document_lengths(features, idf) + bias
            for weights, idf, bias in zip(self.weights, self.idf, self.bias, strict=True)
        ]
        return np.stack(columns, 1)

    def save(self, directory: Path) -> dict[str, int]:
        """Write the weights; returns `hashing` of the head's config.json."""
        from safetensors.numpy import save_file

        save_file({"weights": self.weights, "idf": self.idf, "bias": self.bias}, directory / WEIGHTS_NAME)
        return self.settings.model_dump()

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read the model in a head's directory.

        Raises:
            InputError: a file is missing, damaged, or of another size than config.json says.
        """
        settings, arrays = read_weights(directory, "hashing", HashingSettings, ("weights", "idf", "bias"))
        model = cls(settings, **arrays)
        if not model.weights.shape == model.idf.shape == (len(model.bias), 1 << settings.bits):
            raise InputError(f"{directory}: the sizes in {WEIGHTS_NAME} do not match {CONFIG_NAME}")
        return model


class HashingHead(Head):
    """Scores by hashed words and word pairs."""

    kind = "hashing"
    description = "a linear regression on hashed words and word pairs, without an encoder"
    own_settings = ()

    def __init__(self, model: HashingModel, info: HeadInfo) -> None:
        self.model, self.info = model, info

    @classmethod
    def load(cls, directory: Path, content: dict[str, Any], config: EngineConfig) -> HashingHead:
        """Read the head."""
        return cls(HashingModel.load(directory), HeadInfo.model_validate(content["head"]))

    def predict(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Scores [texts, criteria], not clamped."""
        return self.model.scores(texts)


class HashingTrainer(Trainer):
    """Keeps the hashed features of the documents on disk while heads are fitted."""

    _settings = HashingSettings()
    _model: HashingModel | None = None

    def _open(self, opened: ExitStack) -> None:
        scratch = opened.enter_context(tempfile.TemporaryDirectory(prefix="ml_filter-hashed-"))
        self._documents = opened.enter_context(HashedDocuments(self._settings, Path(scratch)))

    def add(self, texts: Sequence[str]) -> None:
        """Hash the next documents."""
        self._documents.add(texts)

    def fit(self, indices: NDArray[np.int64], labels: Array, weights: Array) -> None:
        """Fit the regressions."""
        features = self._documents.matrix()
        # Documents that are not fitted on get the weight 0: cheaper than copying the others out of the file.
        all_labels = np.full((features.shape[0], len(self.criteria)), np.nan)
        all_weights = np.zeros_like(all_labels)
        all_labels[indices] = labels
        all_weights[indices] = class_weights(labels, weights, self.config.head.balance)
        self._model = HashingModel.fit(features, all_labels, all_weights, self._settings, seed=self.config.seed)

    def predict(self, indices: NDArray[np.int64]) -> Array:
        """Scores of documents."""
        assert self._model is not None
        return self._model.scores_of(self._documents.matrix())[indices].astype(np.float64)

    def save(self, directory: Path, info: HeadInfo) -> None:
        """Write model.safetensors and config.json."""
        assert self._model is not None
        write_config(directory, info, hashing=self._model.save(directory))
