"""The hashing head: a linear regression on hashed words and word pairs. The fastest kind; needs no encoder.

Each word, each punctuation mark and each pair of neighbours is hashed to one of 2^20 features, whose value is
1 + ln(count). Words consist of letters, digits and marks of any script. In scripts that are written without spaces,
every character counts as a word, so pairs are character bigrams. The regression in `sparse_ridge` multiplies features
by their inverse document frequency and scales each document to length 1 (TF-IDF).

Texts are processed as arrays of characters, which gives the same counts as scikit-learn's HashingVectorizer in a
quarter of the time. docs/training.md has the figures behind the defaults.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from ml_filter.errors import InputError
from ml_filter.heads.balance import class_weights
from ml_filter.heads.config import EngineConfig
from ml_filter.heads.info import CONFIG_NAME, WEIGHTS_NAME, HeadInfo, read_weights, write_config
from ml_filter.heads.kinds.base import OF_ENCODERS, Head, Trainer
from ml_filter.heads.sparse_ridge import document_lengths, fit_sparse_ridge
from ml_filter.statistics.intervals import Array

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

_LETTER, _SINGLE = 1, 2
_LETTERS = r"[\p{L}\p{N}\p{M}]+"
_SINGLES = r"[\p{P}\p{S}\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]+"
_BASE = 0x9E3779B97F4A7C15  # arbitrary odd constants of 64 bits
_PAIR, _MIX_WORDS, _MIX_PAIRS = 0xD6E8FEB86659FD93, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_BATCH_CHARACTERS = 1 << 16  # so that the arrays of a batch stay in the processor's cache


class HashingSettings(BaseModel, frozen=True, extra="forbid"):
    """How texts are hashed. The first 3,000 characters, the default, rank better than whole pages."""

    bits: Annotated[int, Field(ge=8, le=28, description="the number of features is 2^bits")] = 20
    max_characters: Annotated[int, Field(ge=1, description="longer texts are truncated")] = 3000


class HashingHead(Head):
    """Regressions on hashed features.

    `arrays` has `weights` and `idf` [criteria, features], the idf a factor of the weights, and `bias` [criteria], all
    float32.
    """

    kind = "hashing"
    description = "a linear regression on hashed words and word pairs, without an encoder"
    unused_settings = OF_ENCODERS | {"encoder"}

    def __init__(self, settings: HashingSettings, arrays: dict[str, NDArray[np.float32]], info: HeadInfo) -> None:
        self.settings, self.arrays, self.info = settings, arrays, info

    @classmethod
    def load(cls, directory: Path, content: dict[str, Any], config: EngineConfig) -> HashingHead:
        """Read the head."""
        settings, arrays = read_weights(directory, content, "hashing", HashingSettings, ("weights", "idf", "bias"))
        if not arrays["weights"].shape == arrays["idf"].shape == (len(arrays["bias"]), 1 << settings.bits):
            raise InputError(f"{directory}: the sizes in {WEIGHTS_NAME} do not match {CONFIG_NAME}")
        return cls(settings, arrays, HeadInfo.model_validate(content["head"]))

    def predict(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Scores [texts, criteria], not clamped; the bias for a text without a known word."""
        return scores_of(hash_texts(texts, self.settings), **self.arrays)


class HashingTrainer(Trainer):
    """Keeps the hashed features of the documents on disk while heads are fitted.

    That takes about 6 KB for each document of 3,000 characters, and 8 bytes of memory.
    """

    _settings = HashingSettings()
    _arrays: dict[str, NDArray[np.float32]]

    def _open(self, opened: ExitStack) -> None:
        scratch = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="ml_filter-hashed-")))
        self._values = opened.enter_context((scratch / "values").open("wb"))
        self._features = opened.enter_context((scratch / "features").open("wb"))
        self._bounds = [np.zeros(1, np.int64)]

    def add(self, texts: Sequence[str]) -> None:
        """Hash the next documents."""
        hashed = hash_texts(texts, self._settings)
        self._values.write(hashed.data.tobytes())
        self._features.write(hashed.indices.tobytes())
        self._bounds.append(self._bounds[-1][-1] + hashed.indptr[1:].astype(np.int64))

    def matrix(self) -> csr_matrix:
        """The features of all documents as `hash_texts` returns them, memory-mapped."""
        from scipy.sparse import csr_matrix

        self._values.flush()
        self._features.flush()
        bounds = np.concatenate(self._bounds)
        values, features = (
            np.memmap(file.name, dtype, "r") if bounds[-1] else np.empty(0, dtype)
            for file, dtype in ((self._values, np.float32), (self._features, np.int32))
        )
        return csr_matrix((values, features, bounds), shape=(len(bounds) - 1, 1 << self._settings.bits), copy=False)

    def fit(self, indices: NDArray[np.int64], labels: Array, weights: Array) -> None:
        """Fit the regressions."""
        features = self.matrix()
        # Documents that are not fitted on get the weight 0: cheaper than copying the others out of the file.
        all_labels = np.full((features.shape[0], len(self.criteria)), np.nan)
        all_weights = np.zeros_like(all_labels)
        all_labels[indices] = labels
        all_weights[indices] = class_weights(labels, weights, self.config.head.balance)
        self._arrays = fit_hashing(features, all_labels, all_weights, seed=self.config.seed)

    def predict(self, indices: NDArray[np.int64]) -> Array:
        """Scores of documents."""
        return scores_of(self.matrix(), **self._arrays)[indices].astype(np.float64)

    def save(self, directory: Path, info: HeadInfo) -> None:
        """Write model.safetensors and config.json."""
        from safetensors.numpy import save_file

        save_file(self._arrays, directory / WEIGHTS_NAME)
        write_config(directory, info, hashing=self._settings.model_dump())


def fit_hashing(features: csr_matrix, labels: Array, weights: Array, *, seed: int) -> dict[str, NDArray[np.float32]]:
    """The arrays of a head for labels and weights [n, criteria]; labels that are nan or of weight 0 are ignored."""
    weights = np.where(np.isnan(labels), 0, weights)
    fits = [fit_sparse_ridge(features, labels[:, c], weights[:, c], seed=seed) for c in range(labels.shape[1])]
    return {
        "weights": np.stack([fit.coefficients for fit in fits]),
        "idf": np.stack([fit.idf for fit in fits]),
        "bias": np.array([fit.bias for fit in fits], np.float32),
    }


def scores_of(
    features: csr_matrix, weights: NDArray[np.float32], idf: NDArray[np.float32], bias: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Scores [n, criteria] of features [n, features] by the arrays of a head."""
    columns = [
        (features @ weights[index]) / document_lengths(features, idf[index]) + bias[index] for index in range(len(bias))
    ]
    return np.stack(columns, 1)


def hash_texts(texts: Sequence[str], settings: HashingSettings) -> csr_matrix:
    """Features [texts, 2^bits] with the values 1 + ln(count), float32; column indices ascend within a row."""
    from scipy.sparse import csr_matrix, vstack

    parts = [_hash_batch(batch, settings.bits) for batch in _batches(texts, settings.max_characters)]
    return vstack(parts, format="csr") if parts else csr_matrix((0, 1 << settings.bits), dtype=np.float32)


def _batches(texts: Sequence[str], max_characters: int) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in texts:
        if batch and size + min(len(text), max_characters) > _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
        batch.append(text[:max_characters].lower())
        size += len(batch[-1]) + 1
    if batch:
        yield batch


def _hash_batch(texts: list[str], bits: int) -> csr_matrix:
    from scipy.sparse import csr_matrix

    text_ends = np.cumsum([len(text) + 1 for text in texts])
    characters = np.frombuffer("\n".join(texts).encode("utf-32-le", "surrogatepass"), np.uint32)
    classes = _character_classes()[characters]
    is_letter = np.concatenate([[False], classes == _LETTER, [False]])
    is_single = classes == _SINGLE
    starts = np.flatnonzero(is_single | (is_letter[1:-1] & ~is_letter[:-2]))
    ends = np.flatnonzero(is_single | (is_letter[1:-1] & ~is_letter[2:])) + 1

    # A word's hash is the number with its characters as digits, modulo 2^64: a difference of two cumulative sums.
    powers, inverses = _powers(1 << len(characters).bit_length())
    sums = np.zeros(len(characters) + 1, np.uint64)
    np.cumsum(characters * powers[: len(characters)], out=sums[1:])
    words = (sums[ends] - sums[starts]) * inverses[starts]
    pairs = words[:-1] * np.uint64(_PAIR) + words[1:]

    # A key has the index of a text in its upper bits and a feature in its lower bits.
    text_bits = np.searchsorted(text_ends, starts, side="right").astype(np.uint64) << np.uint64(bits)
    word_keys = text_bits | _mix(words, _MIX_WORDS, bits)
    pair_keys = text_bits[:-1] | _mix(pairs, _MIX_PAIRS, bits)
    keys = np.concatenate([word_keys, pair_keys[text_bits[:-1] == text_bits[1:]]])
    distinct, counts = np.unique(keys, return_counts=True)
    bounds = np.searchsorted(distinct, np.arange(len(texts) + 1, dtype=np.uint64) << np.uint64(bits))
    features = (distinct & np.uint64((1 << bits) - 1)).astype(np.int32)
    values = (1 + np.log(counts)).astype(np.float32)
    return csr_matrix((values, features, bounds.astype(np.int32)), shape=(len(texts), 1 << bits))


def _mix(hashes: NDArray[np.uint64], factor: int, bits: int) -> NDArray[np.uint64]:
    """The upper `bits` of a product that depends on all bits of the hashes."""
    mixed: NDArray[np.uint64] = ((hashes ^ (hashes >> np.uint64(32))) * np.uint64(factor)) >> np.uint64(64 - bits)
    return mixed


@functools.cache
def _character_classes() -> NDArray[np.uint8]:
    """For each code point [0x110000]: part of a word, a whole word, or neither."""
    import regex

    # Surrogates are replaced because a pair of them would be read as one character.
    code_points = "".join(" " if 0xD800 <= code < 0xE000 else chr(code) for code in range(0x110000))
    classes = np.zeros(len(code_points), np.uint8)
    for character_class, pattern in ((_LETTER, _LETTERS), (_SINGLE, _SINGLES)):
        for match in regex.finditer(pattern, code_points):
            classes[slice(*match.span())] = character_class
    return classes


@functools.cache
def _powers(count: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """The powers 0 to `count` - 1 of the hash's base and of its inverse, modulo 2^64."""

    def powers(base: int) -> NDArray[np.uint64]:
        factors = np.full(count, base, np.uint64)
        factors[0] = 1
        return np.cumprod(factors)

    return powers(_BASE), powers(pow(_BASE, -1, 1 << 64))
