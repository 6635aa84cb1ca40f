"""Hash the words and word pairs of texts to features for a regression.

Each word, each punctuation mark and each pair of neighbours is hashed to one of 2^20 features, whose value is
1 + ln(count). Words consist of letters, digits and marks of any script. In scripts that are written without spaces,
every character counts as a word, so pairs are character bigrams. The regression in `sparse_ridge` multiplies features
by their inverse document frequency and scales each document to length 1 (TF-IDF).

Texts are processed as arrays of characters, which gives the same counts as scikit-learn's HashingVectorizer in a
quarter of the time. docs/training.md has the figures behind the defaults.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

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
    """For each code point [0x110000]: part of a word, a word by itself, or neither."""
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


class HashedDocuments:
    """Hashed features of documents on disk; takes 8 bytes of memory for each document.

    Args:
        settings: how texts are hashed.
        scratch: directory for two files, which take about 6 KB for each document of 3,000 characters.
    """

    def __init__(self, settings: HashingSettings, scratch: Path) -> None:
        self.settings, self._scratch = settings, scratch
        self._bounds = [np.zeros(1, np.int64)]

    def __enter__(self) -> HashedDocuments:
        self._values = (self._scratch / "values").open("wb")
        self._features = (self._scratch / "features").open("wb")
        return self

    def __exit__(self, *error: object) -> None:
        self._values.close()
        self._features.close()

    def add(self, texts: Sequence[str]) -> None:
        """Hash the next documents."""
        hashed = hash_texts(texts, self.settings)
        self._values.write(hashed.data.tobytes())
        self._features.write(hashed.indices.tobytes())
        self._bounds.append(self._bounds[-1][-1] + hashed.indptr[1:].astype(np.int64))

    def matrix(self) -> csr_matrix:
        """All features [documents, 2^bits] as `hash_texts` returns them, memory-mapped."""
        from scipy.sparse import csr_matrix

        self._values.flush()
        self._features.flush()
        bounds = np.concatenate(self._bounds)
        values, features = (
            np.memmap(file.name, dtype, "r") if bounds[-1] else np.empty(0, dtype)
            for file, dtype in ((self._values, np.float32), (self._features, np.int32))
        )
        return csr_matrix((values, features, bounds), shape=(len(bounds) - 1, 1 << self.settings.bits), copy=False)
