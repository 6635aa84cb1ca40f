"""Count and find the tokens of texts, without special tokens, in Rust and on all cores."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ml_filter.errors import ConfigError
from ml_filter.prepare.config import EMBEDDED_ENCODER

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

_FILE_NAME = "tokenizer.json"
_BATCH_CHARACTERS = 2**21
"""An encoded batch takes tens of bytes per character."""


class TokenCounter:
    """A tokenizer, named by Hub name or directory; by default that of the embedded encoder.

    Raises:
        ConfigError: the tokenizer does not exist or has no fast version.
    """

    def __init__(self, name: str | None = None) -> None:
        self.name = name or EMBEDDED_ENCODER
        self._tokenizer = _load(self.name)
        self._tokenizer.no_truncation()  # the embedded encoder's tokenizer truncates at 128
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

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Start and end of each token in the text, in characters."""
        encoding: list[tuple[int, int]] = self._tokenizer.encode(text, add_special_tokens=False).offsets
        return encoding


def _load(name: str) -> Tokenizer:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
    from tokenizers import Tokenizer

    directory = _packaged_encoder() if name == EMBEDDED_ENCODER else Path(name)
    try:
        file = directory / _FILE_NAME if directory.is_dir() else Path(hf_hub_download(name, _FILE_NAME))
        if file.exists():
            return Tokenizer.from_file(str(file))
    except LocalEntryNotFoundError as error:  # the Hub cannot be reached
        raise _cannot_load(name, error) from error
    except EntryNotFoundError:
        pass
    except Exception as error:  # the tokenizers library raises nothing more specific
        raise _cannot_load(name, error) from error
    return _convert(name)


def _convert(name: str) -> Tokenizer:
    """Load a tokenizer without a tokenizer.json. Tried last, because it imports torch."""
    from transformers import AutoTokenizer

    try:
        loaded = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise _cannot_load(name, error) from error
    if not loaded.is_fast:
        raise ConfigError(f"tokenizer {name!r} has no fast version; choose another one or set token_column")
    return loaded.backend_tokenizer


def _cannot_load(name: str, error: Exception) -> ConfigError:
    reason = str(error).strip().splitlines()[0]
    return ConfigError(f"tokenizer {name!r} cannot be loaded; give a Hub name or a directory: {reason}")


def _packaged_encoder() -> Path:
    """The model directory in the package of the embedded encoder, found without importing it."""
    spec = importlib.util.find_spec(EMBEDDED_ENCODER.replace("-", "_"))
    locations = (spec.submodule_search_locations or []) if spec else []
    return next((Path(location) / "model" for location in locations), Path(EMBEDDED_ENCODER))
