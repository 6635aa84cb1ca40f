"""The encoder head: a linear, kernel or mlp layer on the hidden states of a frozen transformers encoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from loguru import logger
from numpy.typing import NDArray
from torch import nn

from ml_filter.errors import ConfigError
from ml_filter.heads.batching import (
    combine_windows,
    prefix_tokens,
    run_in_batches,
    set_text_prefix,
    split_windows,
    usual_ids,
)
from ml_filter.heads.config import EngineConfig
from ml_filter.heads.device import choose_device, choose_dtype, usual_batch_tokens
from ml_filter.heads.embeddings import Embeddings, EmbeddingStore
from ml_filter.heads.encoder import load_encoder, quiet_transformers, weights_digest
from ml_filter.heads.fitting import fit_head, predict
from ml_filter.heads.info import HeadInfo
from ml_filter.heads.kinds.base import Head, Trainer
from ml_filter.heads.model import HeadModel, OutputLayer, chosen_layers, load_model
from ml_filter.heads.openvino import OpenVinoModel
from ml_filter.statistics.intervals import Array

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Forward = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

CHUNK_TEXTS = 512
TOLERANCE = {torch.float32: 0.001, torch.bfloat16: 0.05}
"""Largest difference in the self-test, as a share of the score range. bfloat16 keeps 8 bits of each number, so scores
move by up to a few percent; a broken kernel or a wrong attention mask moves them much further."""
_PROBES = (
    "Water boils at 100 degrees Celsius at sea level, because that is where its vapour pressure equals the air's.",
    "CLICK HERE!!! Best offers, free shipping",
    "Вода кључа на сто степени. 水は百度で沸騰する。",
    " ".join(f"Lesson {n}: the square of {n} is {n * n}, and its root is again {n}." for n in range(60)),
    "",
)


class EncoderHead(Head):
    """An encoder with its output layer, in batches of texts of similar length under a token budget.

    The encoder runs in torch or OpenVINO and in the chosen number type; the output layer runs in float32. The
    constructor runs a self-test: a few texts are scored and compared with a plain float32 forward pass.

    Raises:
        ConfigError: this machine does not have the device, the engine cannot run this encoder, or the self-test failed.
    """

    kind = "encoder"
    description = "a head on the hidden states of a transformers encoder"
    has_encoder = True
    unit = "tokens"

    def __init__(self, model: HeadModel, tokenizer: PreTrainedTokenizerBase, config: EngineConfig) -> None:
        self.info = model.config.info
        self.device = choose_device(config.device)
        self.dtype = choose_dtype(config.dtype, self.device)
        self.tokenizer = tokenizer
        self.batch_tokens = config.batch_tokens or usual_batch_tokens(self.device)
        self.engine = "openvino" if config.engine == "openvino" else "torch"
        self.model = model.eval()
        expected = _plain_scores(model, tokenizer)
        self.forward: Forward
        if self.engine == "openvino":
            if self.device.type != "cpu":
                raise ConfigError(f"engine openvino runs on the CPU, not on {self.device}; add --device cpu")
            self.forward = OpenVinoModel(model, self.dtype)
        else:
            self.forward = nn.Module.to(model.cast_encoder(self.dtype), self.device)
        self._self_test(expected)

    @classmethod
    def load(cls, directory: Path, content: dict[str, Any], config: EngineConfig) -> EncoderHead:
        """Read the head, or a published sequence classifier."""
        return cls(*load_model(directory), config)

    @classmethod
    def text_limit(cls, directory: Path, content: dict[str, Any]) -> str | None:
        """How many tokens the head reads."""
        windows, tokens = content.get("windows", 1), content.get("max_tokens")
        if not tokens:
            return None
        limit = f"{tokens:,} tokens of a text"
        return f"up to {windows} windows of {limit}" if windows > 1 else f"the first {limit}"

    def predict(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Scores [texts, criteria], in order, not clamped; nan if the head gave no number."""
        if not texts:
            return np.empty((0, len(self.info.criteria)), np.float32)
        config = self.model.config
        windows, owners = split_windows(texts, self.tokenizer, config.max_tokens, config.windows)
        scores = run_in_batches(
            windows,
            self.tokenizer,
            self.forward,
            max_tokens=config.max_tokens,
            batch_tokens=self.batch_tokens,
            device=self.device,
            on_shrink=self._shrink,
        )
        combined: NDArray[np.float32] = combine_windows(scores, np.array(owners), len(texts), config.combine)
        return combined

    def lengths(self, texts: Sequence[str]) -> Sequence[int]:
        """Tokens of whole texts."""
        return list(map(len, self.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]))

    def _shrink(self, batch_tokens: int) -> None:
        self.batch_tokens = batch_tokens

    def _self_test(self, expected: NDArray[np.float32]) -> None:
        ranges = np.array([criterion.high - criterion.low for criterion in self.info.criteria])
        scores = self.predict(_PROBES)
        both_nan = np.isnan(scores) & np.isnan(expected)
        differences = np.where(both_nan, 0, np.nan_to_num(np.abs(scores - expected), nan=np.inf))
        largest, tolerance = float((differences / ranges).max()), TOLERANCE[self.dtype]
        logger.debug(
            f"Scoring with {self.engine} on {self.device} in {self.dtype}: the self-test differs from a plain float32 "
            f"forward pass by at most {largest:.2%} of the score range"
        )
        if largest > tolerance:
            raise ConfigError(
                f"scores of {self.engine} on {self.device} in {self.dtype} differ from a plain float32 forward pass by "
                f"{largest:.1%} of the score range; at most {tolerance:.1%} is allowed. Use --dtype float32, another "
                "--engine or another --device"
            )


def _plain_scores(model: HeadModel, tokenizer: PreTrainedTokenizerBase) -> NDArray[np.float32]:
    """Reference scores [probes, criteria]: float32, on the CPU, one whole text at a time."""
    config, scores = model.config, []
    with torch.inference_mode():
        for text in _PROBES:
            windows, owners = split_windows([text], tokenizer, config.max_tokens, config.windows)
            rows = []
            for window in windows:
                ids = usual_ids([window], tokenizer, config.max_tokens)
                rows.append(model(torch.tensor(ids), torch.ones(1, len(ids[0]), dtype=torch.int64)).numpy()[0])
            scores.append(combine_windows(np.array(rows), np.array(owners), 1, config.combine)[0])
    return np.array(scores, np.float32)


class EncoderTrainer(Trainer):
    """Fits output layers on the cached embeddings of a frozen encoder."""

    _layer: OutputLayer | None = None

    def _open(self, opened: ExitStack) -> None:
        config = self.config
        self._encoder = load_encoder(config.encoder)
        self._tokenizer = self._encoder.tokenizer
        self._prefix = self._encoder.text_prefix if config.text_prefix is None else config.text_prefix
        set_text_prefix(self._tokenizer, self._prefix)
        self._max_tokens = min(config.max_tokens, self._encoder.max_tokens)
        if self._max_tokens < config.max_tokens:
            logger.info(f"{config.encoder} reads {self._max_tokens} tokens, not {config.max_tokens:,}")
        if prefix_tokens(self._tokenizer) + self._tokenizer.num_special_tokens_to_add() >= self._max_tokens:
            raise ConfigError(
                f"text_prefix {self._prefix!r} leaves no room for text in {self._max_tokens} tokens; raise max_tokens "
                "or shorten text_prefix"
            )
        self._embedder = HeadModel.embedder(self._encoder, config.layers)
        self.encoder_digest = weights_digest(self._encoder)
        identity = {
            "encoder": self.encoder_digest,
            "pooling": self._encoder.pooling,
            "layers": self._embedder.config.layers,
            "max_tokens": self._max_tokens,
            "dtype": str(self._embedder.encoder.dtype),
            "device": self._embedder.device.type,
        }
        if self._prefix:
            identity["text_prefix"] = self._prefix
        embed = partial(self._run, self._embedder, self._embedder.embed)
        self._store = opened.enter_context(EmbeddingStore(self._cache, identity, self._embedder.width, embed))
        self._rows: list[int] = []
        self._owners: list[int] = []
        self._documents = 0

    def add(self, texts: Sequence[str]) -> None:
        """Embed the windows of the next documents, unless they are in the cache."""
        for start in range(0, len(texts), CHUNK_TEXTS):
            chunk = texts[start : start + CHUNK_TEXTS]
            windows, owners = split_windows(chunk, self._tokenizer, self._max_tokens, self.config.windows)
            self._rows += self._rows_of(windows)
            self._owners += [self._documents + owner for owner in owners]
            self._documents += len(chunk)

    def _rows_of(self, windows: Sequence[str]) -> list[int]:
        return self._store.rows_of(windows)

    def fit(self, indices: NDArray[np.int64], labels: Array, weights: Array) -> None:
        """Fit the output layer; each window of a document gets its label and a share of its weight."""
        embeddings, owners = self.windows_of(indices)
        shares = 1 / np.bincount(owners, minlength=len(indices))[owners]
        self._layer = fit_head(
            embeddings,
            labels[owners],
            weights[owners] * shares[:, None],
            self.criteria,
            self.config.head,
            seed=self.config.seed,
            owners=owners,
        )
        self.history = self._layer.history

    def predict(self, indices: NDArray[np.int64]) -> Array:
        """Scores of documents, their windows combined."""
        assert self._layer is not None
        embeddings, owners = self.windows_of(indices)
        return combine_windows(predict(self._layer, embeddings), owners, len(indices), self.config.combine)

    def save(self, directory: Path, info: HeadInfo) -> None:
        """Write model.safetensors, config.json and the tokenizer."""
        with quiet_transformers():
            self._model_with(info).save_pretrained(directory)
            self._tokenizer.save_pretrained(directory)

    def _model_with(self, info: HeadInfo) -> HeadModel:
        """The encoder with the output layer of the last fit."""
        assert self._layer is not None
        model = HeadModel.from_encoder(
            self._encoder,
            layers=self.config.layers,
            max_tokens=self._max_tokens,
            text_prefix=self._prefix,
            windows=self.config.windows,
            combine=self.config.combine,
            kind=self._layer.kind,
            size=self._layer.size,
            task=self._layer.task,
            head=info.model_dump(mode="json"),
        )
        model.head.load_state_dict(self._layer.state_dict())
        return model

    def _run(self, model: HeadModel, forward: Forward, windows: Sequence[str]) -> NDArray[np.float32]:
        """The outputs [windows, ...] of a forward pass of `model`."""
        return run_in_batches(
            windows,
            self._tokenizer,
            forward,
            max_tokens=self._max_tokens,
            batch_tokens=usual_batch_tokens(model.device),
            device=model.device,
        )

    def windows_of(self, indices: NDArray[np.int64]) -> tuple[Embeddings, NDArray[np.int64]]:
        """Embeddings of all windows of the documents at `indices`, and each window's position in `indices`."""
        positions = self._positions_of_windows(indices)
        chosen = np.flatnonzero(positions >= 0)
        return Embeddings(self._store.vectors(), np.array(self._rows)[chosen], self._columns()), positions[chosen]

    def _columns(self) -> NDArray[np.int64] | None:
        """The columns of the head's layers in an embedding that may have more layers; None: all columns."""
        stored = self._embedder.config.layers
        size = self._embedder.width // len(stored)
        layers = chosen_layers(self.config.layers, self._encoder.depth)
        if layers == stored:
            return None
        return np.concatenate([np.arange(size) + stored.index(layer) * size for layer in layers])

    def _positions_of_windows(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """For each window [windows], the position of its document in `indices`; -1 if it is not among them."""
        position = np.full(self._documents, -1, np.int64)
        position[indices] = np.arange(len(indices))
        positions: NDArray[np.int64] = position[np.array(self._owners)]
        return positions
