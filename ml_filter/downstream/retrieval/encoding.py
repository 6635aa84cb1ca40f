"""Passages and questions as vectors, and the finer orders of what was found: MaxSim and cross-encoders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from ml_filter.downstream.retrieval.config import IndexConfig
from ml_filter.errors import ConfigError
from ml_filter.heads.batching import length_batches, pad, run_in_batches, token_ids
from ml_filter.heads.config import EngineConfig
from ml_filter.heads.device import choose_device, choose_dtype, usual_batch_tokens
from ml_filter.heads.encoder import Encoder, load_encoder, quiet_transformers, weights_digest
from ml_filter.heads.model import HeadModel
from ml_filter.heads.openvino import OpenVinoModel

_MAX_TOKENS = 512


class TextEncoder:
    """The last layer of a frozen encoder, pooled as it was trained.

    Raises:
        ConfigError: the encoder cannot be loaded, or this machine does not have the device.
    """

    def __init__(self, config: IndexConfig) -> None:
        self.encoder: Encoder = load_encoder(config.encoder)
        self.tokenizer = self.encoder.tokenizer
        self.config = config
        self.device = choose_device(config.device)
        self.dtype = choose_dtype(config.dtype, self.device)
        self.max_tokens = min(_MAX_TOKENS, self.encoder.max_tokens)
        self.batch_tokens = config.batch_tokens or usual_batch_tokens(self.device)

    @cached_property
    def digest(self) -> str:
        """Of the weights and the vocabulary."""
        return weights_digest(self.encoder)

    @property
    def text_prefix(self) -> str:
        """Text before each passage."""
        return self.encoder.text_prefix if self.config.text_prefix is None else self.config.text_prefix

    @property
    def query_prefix(self) -> str:
        """Text before each question."""
        return self.encoder.query_prefix if self.config.query_prefix is None else self.config.query_prefix

    @cached_property
    def model(self) -> HeadModel:
        """Pools the last layer."""
        embedder = HeadModel.from_encoder(self.encoder, layers=1)
        return nn.Module.to(embedder.cast_encoder(self.dtype), self.device)

    @property
    def width(self) -> int:
        """Length of a vector."""
        return int(self.encoder.model.config.hidden_size)

    @cached_property
    def _forward(self) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        """Embeds batches of passages. On CPUs OpenVINO is the faster engine (docs/retrieval.md)."""
        if self.config.engine == "openvino" or (self.config.engine == "auto" and self.device.type == "cpu"):
            return OpenVinoModel(self.model, self.dtype).encode
        return self.model.embed

    def passages(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors [texts, width]."""
        return self._embed([self.text_prefix + text for text in texts], self._forward)

    def questions(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors [texts, width]; always by torch, which starts faster."""
        return self._embed([self.query_prefix + text for text in texts], self.model.embed)

    def _embed(self, texts: Sequence[str], forward: Callable[..., torch.Tensor]) -> NDArray[np.float32]:
        vectors = run_in_batches(
            texts,
            self.tokenizer,
            forward,
            max_tokens=self.max_tokens,
            batch_tokens=self.batch_tokens,
            device=self.device,
        ).reshape(len(texts), -1)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        unit: NDArray[np.float32] = vectors / np.maximum(lengths, 1e-12)
        return unit

    def token_states(self, texts: Sequence[str]) -> list[torch.Tensor]:
        """Unit vectors [tokens, width] of the tokens of each text, without the special tokens at its ends."""
        ids = token_ids(texts, self.tokenizer, self.max_tokens)
        states: list[torch.Tensor] = [torch.empty(0)] * len(ids)
        with torch.inference_mode():
            for batch in length_batches([len(row) for row in ids], self.batch_tokens):
                padded = pad([ids[row] for row in batch], self.tokenizer.pad_token_id or 0, self.device)
                hidden = self.model.encoder(input_ids=padded[0], attention_mask=padded[1]).last_hidden_state
                hidden = functional.normalize(hidden.float(), dim=-1)
                for row, tokens in zip(batch, hidden, strict=True):
                    states[row] = tokens[1 : len(ids[row]) - 1].cpu()
        return states

    def max_sim(self, question: str, texts: Sequence[str]) -> list[float]:
        """For each text, the mean over the question's tokens of the largest cosine with a token of the text.

        Late interaction as in ColBERT (Khattab and Zaharia 2020), with the states of an encoder not trained for it.
        """
        question_states, *text_states = self.token_states(
            [self.query_prefix + question, *(self.text_prefix + text for text in texts)]
        )
        if not len(question_states):
            return [0.0] * len(texts)
        return [float((question_states @ states.T).amax(1).mean()) if len(states) else -1.0 for states in text_states]


class CrossEncoder:
    """A classifier of one output that reads question and passage together.

    Raises:
        ConfigError: the model cannot be loaded, or has several outputs.
    """

    def __init__(self, name: str, engine: EngineConfig) -> None:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        self.device = choose_device(engine.device)
        try:
            with quiet_transformers():
                self.tokenizer: Any = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
                model: Any = AutoModelForSequenceClassification.from_pretrained(
                    name, use_safetensors=True, trust_remote_code=False
                )
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ConfigError(f"cannot load the cross-encoder {name!r}: {reason}") from error
        if model.config.num_labels != 1:
            raise ConfigError(f"{name!r} has {model.config.num_labels} outputs; a cross-encoder must have one")
        self.model = model.float().eval().to(self.device)

    def scores(self, question: str, texts: Sequence[str]) -> list[float]:
        """How well each text answers the question."""
        pairs = self.tokenizer(
            [question] * len(texts), list(texts), truncation="only_second", max_length=_MAX_TOKENS, padding=True,
            return_tensors="pt",
        )  # fmt: skip
        with torch.inference_mode():
            logits = self.model(**pairs.to(self.device)).logits
        return [float(value) for value in logits[:, 0]]
