"""Encoders by name: a Hub model, a local directory, or one that a Python package carries."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ml_filter.errors import ConfigError
from ml_filter.heads.arithmetic import steady_arithmetic

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Pooling = Literal["mean", "cls"]


@dataclass(frozen=True)
class Encoder:
    """A transformers encoder with its tokenizer and the pooling it was trained with.

    `name` is as `shown_name` gives it.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    pooling: Pooling
    text_prefix: str = ""
    """What was put before each document in its training, as far as its files say."""

    @property
    def depth(self) -> int:
        """Transformer layers, and the index of the last hidden state."""
        return int(self.model.config.num_hidden_layers)

    @property
    def max_tokens(self) -> int:
        """Tokens that it reads, special tokens among them, as far as its files say."""
        limits = [
            getattr(self.model.config, "max_position_embeddings", None),
            self.tokenizer.model_max_length,  # a very large number where the files are silent
        ]
        if self.model.config.model_type in _OFFSET_POSITIONS and limits[0]:
            limits[0] -= _OFFSET_POSITIONS[self.model.config.model_type]
        return int(min(limit for limit in limits if limit))


_DOCUMENT_PROMPTS = ("document", "passage", "corpus")
_OFFSET_POSITIONS = {"roberta": 2, "xlm-roberta": 2, "camembert": 2}
"""Position embeddings that are never used, as numbering starts behind the padding's."""


def weights_digest(encoder: Encoder) -> str:
    """SHA-256 of an encoder's weights and vocabulary, wherever it was loaded from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(encoder.model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    digest.update(json.dumps(sorted(encoder.tokenizer.get_vocab().items())).encode())
    return digest.hexdigest()


def load_encoder(name: str) -> Encoder:
    """Load an encoder in float32.

    Args:
        name: directory, Hub name, or the name of an installed package with a `model` directory inside.

    Raises:
        ConfigError: there is no such encoder, or it cannot be downloaded.
    """
    from transformers import AutoModel, AutoTokenizer

    steady_arithmetic()
    place = _packaged(name) or name
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(place)
            model = AutoModel.from_pretrained(place)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"encoder {name!r} is no directory, no installed package and cannot be had from the Hub: "
            f"{str(error).splitlines()[0]}"
        ) from error
    return Encoder(shown_name(name), model.float().eval(), tokenizer, _pooling(place), _document_prompt(place))


def shown_name(name: str) -> str:
    """An encoder's name in what is saved: of a directory its own name, no path of this machine."""
    return Path(name).absolute().name if Path(name).is_dir() else name


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Load and save models without the library's own progress bars."""
    from transformers.utils import logging

    if not logging.is_progress_bar_enabled():
        yield
        return
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()


def _packaged(name: str) -> str | None:
    """The model directory of a package, found without importing the package."""
    if "/" in name or Path(name).exists():
        return None
    spec = importlib.util.find_spec(name.replace("-", "_"))
    for location in (spec.submodule_search_locations or []) if spec else []:
        if (Path(location) / "model" / "config.json").exists():
            return str(Path(location) / "model")
    return None


def _pooling(place: str) -> Pooling:
    """What a sentence-transformers directory says of its pooling; mean where nothing is said."""
    return "cls" if _said(place, "1_Pooling/config.json").get("pooling_mode_cls_token") else "mean"


def _document_prompt(place: str) -> str:
    """The prompt that sentence-transformers' `encode_document` would take; none where none is said."""
    said = _said(place, "config_sentence_transformers.json")
    prompts = said.get("prompts") or {}
    names = [name for name in _DOCUMENT_PROMPTS if prompts.get(name)]
    return str(prompts.get(names[0] if names else said.get("default_prompt_name")) or "")


def _said(place: str, name: str) -> dict[str, Any]:
    """What a JSON file beside a model says; nothing where there is no such file."""
    from transformers.utils.hub import cached_file

    found = cached_file(
        place,
        name,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    says: dict[str, Any] = json.loads(Path(found).read_text(encoding="utf-8")) if found is not None else {}
    return says


def pool(states: torch.Tensor, mask: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """Token states [batch, tokens, width] to one float32 vector a document [batch, width]."""
    if pooling == "cls":
        return states[:, 0].float()
    # As a matrix product, which sums in float32 also where the states are bfloat16.
    summed = (mask.unsqueeze(1).to(states.dtype) @ states).squeeze(1)
    return summed.float() / mask.sum(1, keepdim=True).clamp(min=1).float()
