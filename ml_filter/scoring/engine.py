"""The scoring engine: texts to scores with one head, in batches of like length under a token budget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from loguru import logger

from ml_filter.errors import ConfigError
from ml_filter.heads.batching import run_in_batches
from ml_filter.settings import ScoreConfig

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

    from ml_filter.heads.model import HeadModel


def choose_device(name: str) -> torch.device:
    """The device a setting means; `auto` takes the first accelerator, else the CPU.

    Raises:
        ConfigError: there is no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}") from error
    return torch.device(name)


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The encoder's type; `auto` is bfloat16 where the hardware multiplies it natively, else float32."""
    if name != "auto":
        return torch.bfloat16 if name == "bfloat16" else torch.float32
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    if device.type == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return torch.bfloat16
    return torch.float32


class ScoringEngine:
    """Scores texts. The encoder runs in the chosen type, the head in float32."""

    def __init__(self, model: HeadModel, tokenizer: PreTrainedTokenizerBase, config: ScoreConfig) -> None:
        self.device = choose_device(config.device)
        self.dtype = choose_dtype(config.dtype, self.device)
        self.model = model.eval().cast_encoder(self.dtype).to(self.device)
        self.tokenizer = tokenizer
        self.batch_tokens = config.batch_tokens
        logger.debug(f"Scoring on {self.device} in {self.dtype}")

    def score(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """One score a text, in order, clamped to the head's range; NaN where the model gave none."""
        if not texts:
            return np.empty(0, dtype=np.float32)
        return run_in_batches(
            texts,
            self.tokenizer,
            self.model,
            max_tokens=self.model.config.max_tokens,
            batch_tokens=self.batch_tokens,
            device=self.device,
        )
