"""The static head: a linear regression on means of token vectors that were distilled from an encoder."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ml_filter.criterion import Criterion
from ml_filter.heads.config import EngineConfig, TrainConfig
from ml_filter.heads.embeddings import Embeddings, EmbeddingStore
from ml_filter.heads.encoder import load_encoder, weights_digest
from ml_filter.heads.fitting import class_weights
from ml_filter.heads.info import HeadInfo, write_config
from ml_filter.heads.kinds.base import Head, Trainer
from ml_filter.heads.static import StaticModel, StaticSettings, open_static
from ml_filter.statistics.intervals import Array

_CHUNK_TEXTS = 512


class StaticHead(Head):
    """Scores by static embeddings."""

    kind = "static"
    description = "a linear regression on token vectors distilled from a transformers encoder"
    unit = "tokens"
    own_settings = ("encoder",)

    def __init__(self, model: StaticModel, info: HeadInfo) -> None:
        self.model, self.info = model, info

    @classmethod
    def load(cls, directory: Path, content: dict[str, Any], config: EngineConfig) -> StaticHead:
        """Read the head."""
        return cls(StaticModel.load(directory), HeadInfo.model_validate(content["head"]))

    def predict(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Scores [texts, criteria], not clamped."""
        return self.model.scores(texts)

    def lengths(self, texts: Sequence[str]) -> Sequence[int]:
        """Tokens of whole texts."""
        return list(map(len, self.model.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)))


class StaticTrainer(Trainer):
    """Fits regressions on cached static embeddings."""

    def __init__(
        self, config: TrainConfig, criteria: Sequence[Criterion], cache: Path, scratch: Path | None = None
    ) -> None:
        super().__init__(config, criteria, cache, scratch)
        encoder = load_encoder(config.encoder)
        self._model = open_static(encoder, StaticSettings(), cache)
        self.encoder_digest = weights_digest(encoder)
        identity = {"static": StaticSettings().model_dump(), "encoder": self.encoder_digest}
        self._store = EmbeddingStore(cache, identity, self._model.width, self._model.embed)
        self._rows: list[int] = []

    def _open(self, opened: ExitStack) -> None:
        opened.enter_context(self._store)

    def add(self, texts: Sequence[str]) -> None:
        """Embed the next documents, unless they are in the cache."""
        for start in range(0, len(texts), _CHUNK_TEXTS):
            self._rows += self._store.rows_of(texts[start : start + _CHUNK_TEXTS])

    def fit(self, indices: NDArray[np.int64], labels: Array, weights: Array) -> None:
        """Fit the regressions."""
        balanced = class_weights(labels, weights, self.config.head.balance)
        self._model = self._model.fit(self._embeddings(indices), labels, balanced, seed=self.config.seed)

    def predict(self, indices: NDArray[np.int64]) -> Array:
        """Scores of documents."""
        embeddings = self._embeddings(indices)
        blocks = [self._model.scores_of(embeddings[block]) for block in embeddings.blocks()]
        return np.concatenate(blocks).astype(np.float64)

    def save(self, directory: Path, info: HeadInfo) -> None:
        """Write model.safetensors, tokenizer.json and config.json."""
        write_config(directory, info, static=self._model.save(directory))

    def _embeddings(self, indices: NDArray[np.int64]) -> Embeddings:
        return Embeddings(self._store.vectors(), np.array(self._rows)[indices])
