"""The scoring engines: texts to scores with a head, whatever its kind."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from loguru import logger

from ml_filter.errors import InputError
from ml_filter.heads.batching import combine_windows, run_in_batches, split_windows
from ml_filter.heads.hashing import HashingModel
from ml_filter.heads.info import CONFIG_NAME, HeadInfo, read_info
from ml_filter.heads.load import load_model
from ml_filter.heads.static import StaticModel
from ml_filter.scoring.device import choose_device, choose_dtype
from ml_filter.settings import ScoreConfig

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

    from ml_filter.heads.model import HeadModel


class Engine(ABC):
    """Scores texts."""

    info: HeadInfo

    @abstractmethod
    def raw(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Scores [texts, criteria], in order, as the head gives them; nan where it gave none."""

    def score(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """The same, clamped to the score ranges."""
        low, high = ([getattr(criterion, side) for criterion in self.info.criteria] for side in ("low", "high"))
        made: NDArray[np.float32] = np.clip(self.raw(texts), low, high).astype(np.float32)
        return made


def load_engine(directory: str | Path, config: ScoreConfig) -> Engine:
    """The engine of a head, or of a published classifier's directory.

    Raises:
        InputError: the directory holds no complete head.
        ConfigError: there is no such device here, or the classifier cannot be loaded.
    """
    path = Path(directory) / CONFIG_NAME
    if not path.exists():
        raise InputError(f"{directory} holds no trained head (no {CONFIG_NAME}); make one with ml-filter train")
    content = json.loads(path.read_text())
    if "hashing" in content:
        return LexicalEngine(HashingModel.load(directory), read_info(directory))
    if "static" in content:
        return LexicalEngine(StaticModel.load(directory), read_info(directory))
    if "stack" in content:
        members = [load_engine(Path(directory) / name, config) for name in content["stack"]["members"]]
        return StackEngine(members, content["stack"], read_info(directory))
    return EncoderEngine(*load_model(directory), config)


class EncoderEngine(Engine):
    """An encoder with its head, in batches of like length under a token budget.

    The encoder runs in the chosen number type, the head in float32.
    """

    def __init__(self, model: HeadModel, tokenizer: PreTrainedTokenizerBase, config: ScoreConfig) -> None:
        self.info = model.config.info
        self.device = choose_device(config.device)
        self.dtype = choose_dtype(config.dtype, self.device)
        self.model = model.eval().cast_encoder(self.dtype).to(self.device)
        self.tokenizer = tokenizer
        self.batch_tokens = config.batch_tokens
        logger.debug(f"Scoring on {self.device} in {self.dtype}")

    def raw(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Scores [texts, criteria], in order, as the head gives them; nan where it gave none."""
        if not texts:
            return np.empty((0, len(self.info.criteria)), np.float32)
        config = self.model.config
        windows, owners = split_windows(texts, self.tokenizer, config.max_tokens, config.windows)
        made = run_in_batches(
            windows,
            self.tokenizer,
            self.model,
            max_tokens=config.max_tokens,
            batch_tokens=self.batch_tokens,
            device=self.device,
        )
        combined: NDArray[np.float32] = combine_windows(made, np.array(owners), len(texts), config.combine)
        return combined


class LexicalEngine(Engine):
    """A linear head on hashed words or static embeddings: no encoder, no device."""

    def __init__(self, model: HashingModel | StaticModel, info: HeadInfo) -> None:
        self.model, self.info = model, info

    def raw(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Scores [texts, criteria], in order, as the head gives them."""
        return self.model.scores(texts)


class StackEngine(Engine):
    """Several engines, whose scores are added up with the weights that training found."""

    def __init__(self, members: Sequence[Engine], stack: dict[str, Any], info: HeadInfo) -> None:
        self.members, self.info = members, info
        self.weights, self.bias = np.array(stack["weights"]), np.array(stack["bias"])

    def raw(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Scores [texts, criteria], in order, as the head gives them; nan where a member gave none."""
        made = np.stack([member.raw(texts) for member in self.members], 2)
        combined: NDArray[np.float32] = (np.einsum("ncm,cm->nc", made, self.weights) + self.bias).astype(np.float32)
        return combined
