"""Count the tokens of documents: whole documents, without special tokens, in Rust batches on all cores."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ml_filter.errors import ConfigError
from ml_filter.heads.config import EMBEDDED_ENCODER

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

_FILE = "tokenizer.json"
_BATCH_CHARACTERS = 2**21
"""An encoded batch takes tens of bytes a character."""


class TokenCounter:
    """A tokenizer, by Hub name or directory; unset: that of the embedded encoder.

    Raises:
        ConfigError: there is no such tokenizer, or it has no fast version.
    """

    def __init__(self, name: str | None = None) -> None:
        self.name = name or EMBEDDED_ENCODER
        self._tokenizer = _load(self.name)
        self._tokenizer.no_truncation()  # the embedded encoder's says that it cuts at 128
        self._tokenizer.no_padding()

    @property
    def digest(self) -> str:
        """SHA-256 of the tokenizer: its vocabulary, rules and normalisation."""
        return hashlib.sha256(self._tokenizer.to_str().encode()).hexdigest()

    def count(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """The number of tokens of each text."""
        counts: list[int] = []
        start = characters = 0
        for end, text in enumerate(texts, 1):
            characters += len(text)
            if characters >= _BATCH_CHARACTERS or end == len(texts):
                counts += map(len, self._tokenizer.encode_batch_fast(texts[start:end], add_special_tokens=False))
                start, characters = end, 0
        return np.array(counts, dtype=np.int64)


def _load(name: str) -> Tokenizer:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
    from tokenizers import Tokenizer

    place = _packaged() if name == EMBEDDED_ENCODER else Path(name)
    try:
        if not place.is_dir():
            return Tokenizer.from_file(hf_hub_download(name, _FILE))
        if (place / _FILE).exists():
            return Tokenizer.from_file(str(place / _FILE))
    except LocalEntryNotFoundError as error:  # no way to the Hub
        raise _unknown(name, error) from error
    except EntryNotFoundError:
        pass
    except Exception as error:  # the tokenizers library raises nothing narrower
        raise _unknown(name, error) from error
    return _converted(name)


def _converted(name: str) -> Tokenizer:
    """A tokenizer that comes in other files than tokenizer.json; loads torch, which is why it is tried last."""
    from transformers import AutoTokenizer

    try:
        loaded = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise _unknown(name, error) from error
    if not loaded.is_fast:
        raise ConfigError(f"tokenizer {name!r} has no fast version; choose another, or give a token column")
    return loaded.backend_tokenizer


def _unknown(name: str, error: Exception) -> ConfigError:
    says = str(error).strip().splitlines()[0]
    return ConfigError(f"tokenizer {name!r} cannot be loaded; give a Hub name or a directory: {says}")


def _packaged() -> Path:
    """The model directory of the package that carries the embedded encoder, found without importing it."""
    spec = importlib.util.find_spec(EMBEDDED_ENCODER.replace("-", "_"))
    locations = (spec.submodule_search_locations or []) if spec else []
    return next((Path(location) / "model" for location in locations), Path(EMBEDDED_ENCODER))
