"""The stack: a weighted sum of an encoder head and a hashing head."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ml_filter.heads.balance import class_weights
from ml_filter.heads.config import EngineConfig, HeadKind, TrainConfig
from ml_filter.heads.info import HeadInfo, read_config, write_config
from ml_filter.heads.kinds.base import Head, Trainer, head_class, load_head
from ml_filter.heads.kinds.encoder import EncoderTrainer
from ml_filter.heads.kinds.hashing import HashingTrainer
from ml_filter.statistics.intervals import Array

MEMBERS: dict[HeadKind, type[Trainer]] = {"encoder": EncoderTrainer, "hashing": HashingTrainer}
"""By kind, which is also the name of a member's directory."""


class StackHead(Head):
    """Adds up the scores of its members."""

    kind = "stack"
    description = "a weighted sum of a head on a transformers encoder and one on hashed words"
    has_encoder = True

    def __init__(self, members: Sequence[Head], stack: dict[str, Any], info: HeadInfo) -> None:
        self.members, self.info = members, info
        self.weights, self.bias = np.array(stack["weights"]), np.array(stack["bias"])
        self.encoder = next(member for member in members if member.kind == "encoder")
        self.unit = self.encoder.unit

    @classmethod
    def load(cls, directory: Path, content: dict[str, Any], config: EngineConfig) -> StackHead:
        """Read the head and its members."""
        members = [load_head(directory / name, config) for name in content["stack"]["members"]]
        return cls(members, content["stack"], HeadInfo.model_validate(content["head"]))

    @classmethod
    def text_limit(cls, directory: Path, content: dict[str, Any]) -> str | None:
        """How much of a text each member reads."""
        names = content["stack"]["members"]
        limits = [head_class(name).text_limit(directory / name, read_config(directory / name)) for name in names]
        return ", and ".join(limit for limit in limits if limit)

    def predict(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Scores [texts, criteria], in order, not clamped; nan if a member gave no number."""
        scores = np.stack([member.predict(texts) for member in self.members], 2)
        combined: NDArray[np.float32] = _weighted_sum(scores, self.weights, self.bias).astype(np.float32)
        return combined

    def lengths(self, texts: Sequence[str]) -> Sequence[int]:
        """Lengths as the member with the encoder counts them."""
        return self.encoder.lengths(texts)


class StackTrainer(Trainer):
    """Fits the members, and the weights of their sum on cross-fitted scores (stacked regression; Breiman 1996).

    The weights are not negative. `cross_fit` finds them; `fit` only fits the members.
    """

    _weights: Array
    _bias: Array

    def _open(self, opened: ExitStack) -> None:
        trainers = (trainer(self.config, self.criteria, self._cache) for trainer in MEMBERS.values())
        self.members = [opened.enter_context(trainer) for trainer in trainers]
        self.encoder_digest = self.members[0].encoder_digest

    def with_settings(self, config: TrainConfig) -> Self:
        """A trainer with other settings that shares the members' documents."""
        trainer = super().with_settings(config)
        trainer.members = [member.with_settings(config) for member in self.members]
        return trainer

    def add(self, texts: Sequence[str]) -> None:
        """Add the next documents to each member."""
        for member in self.members:
            member.add(texts)

    def cross_fit(self, indices: NDArray[np.int64], labels: Array, weights: Array, folds: NDArray[np.int64]) -> Array:
        """Cross-fit the members, find the weights, and combine."""
        from scipy.optimize import nnls

        scores = np.stack([member.cross_fit(indices, labels, weights, folds) for member in self.members], 2)
        balanced = class_weights(labels, weights, self.config.head.balance)
        self._weights = np.empty((labels.shape[1], len(self.members)))
        self._bias = np.empty(labels.shape[1])
        for column in range(labels.shape[1]):
            has_label = ~np.isnan(labels[:, column])
            targets, predicted = labels[has_label, column], scores[has_label, column]
            root = np.sqrt(balanced[has_label, column])
            means, mean = np.average(predicted, 0, root**2), np.average(targets, weights=root**2)
            self._weights[column], _ = nnls((predicted - means) * root[:, None], (targets - mean) * root)
            self._bias[column] = mean - means @ self._weights[column]
        return _weighted_sum(scores, self._weights, self._bias)

    def fit(self, indices: NDArray[np.int64], labels: Array, weights: Array) -> None:
        """Fit the members."""
        for member in self.members:
            member.fit(indices, labels, weights)
        self.history = [row for member in self.members for row in member.history]

    def predict(self, indices: NDArray[np.int64]) -> Array:
        """Combined scores of documents."""
        scores = np.stack([member.predict(indices) for member in self.members], 2)
        return _weighted_sum(scores, self._weights, self._bias)

    def save(self, directory: Path, info: HeadInfo) -> None:
        """Write each member to its own subdirectory, and config.json with the weights."""
        uncalibrated = [criterion.model_copy(update={"calibration": None}) for criterion in info.criteria]
        for name, member in zip(MEMBERS, self.members, strict=True):
            (directory / name).mkdir()
            member.save(directory / name, HeadInfo(engine=name, criteria=uncalibrated))
        stack = {"members": list(MEMBERS), "weights": self._weights.tolist(), "bias": self._bias.tolist()}
        write_config(directory, info, stack=stack)


def _weighted_sum(scores: NDArray[Any], weights: Array, bias: Array) -> Array:
    """Scores [n, criteria, members] to [n, criteria]."""
    total: Array = np.einsum("ncm,cm->nc", scores, weights) + bias
    return total
