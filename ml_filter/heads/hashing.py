"""The hashing head: a linear regression on hashed words and word pairs, the cheapest engine.

A text becomes its words, punctuation marks and pairs of neighbours, each hashed to one of 2^20 features with the value
1 + ln(times it occurs). Letters, digits and marks of any script form words; a character of a script that is written
without spaces is a word of its own, so that its pairs are character bigrams. A regression weighs features by
their inverse document frequency and brings each document to length 1 (TF-IDF).

All is done on arrays of characters, not word by word: four times as fast as scikit-learn's HashingVectorizer, and the
same counts. docs/training.md has the figures behind the defaults.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import BaseModel, Field

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from scipy.sparse import csr_matrix


_WORD, _ALONE = 1, 2
_WORDS = r"[\p{L}\p{N}\p{M}]+"
_ALONES = r"[\p{P}\p{S}\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]+"
_BASE = 0x9E3779B97F4A7C15  # odd constants of 64 bits without a pattern
_PAIR, _MIX_WORDS, _MIX_PAIRS = 0xD6E8FEB86659FD93, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_BATCH_CHARACTERS = 1 << 16  # its arrays stay in the processor's cache


class HashingSettings(BaseModel, frozen=True, extra="forbid"):
    """What a text's features are. By default the first 3,000 characters count, which ranks better than whole pages."""

    bits: Annotated[int, Field(ge=8, le=28, description="2^bits features")] = 20
    max_characters: Annotated[int, Field(ge=1, description="the text behind them is not read")] = 3000


def hash_texts(texts: Sequence[str], settings: HashingSettings) -> csr_matrix:
    """Values 1 + ln(count) of the features of texts: [texts, 2^bits], float32, a row's features in rising order."""
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
    kind = np.concatenate([[0], _kinds()[characters], [0]])
    inner = kind[1:-1]
    starts = np.flatnonzero((inner == _ALONE) | ((inner == _WORD) & (kind[:-2] != _WORD)))
    ends = np.flatnonzero((inner == _ALONE) | ((inner == _WORD) & (kind[2:] != _WORD))) + 1

    # A word's hash is its characters as digits of a number, modulo 2^64: a difference of two running sums.
    powers, inverses = _powers(1 << len(characters).bit_length())
    sums = np.zeros(len(characters) + 1, np.uint64)
    np.cumsum(characters * powers[: len(characters)], out=sums[1:])
    words = (sums[ends] - sums[starts]) * inverses[starts]
    pairs = words[:-1] * np.uint64(_PAIR) + words[1:]

    texts_of = np.searchsorted(text_ends, starts, side="right").astype(np.uint64) << np.uint64(bits)
    in_one = texts_of[:-1] == texts_of[1:]
    keys = np.concatenate(
        [texts_of | _mix(words, _MIX_WORDS, bits), (texts_of[:-1] | _mix(pairs, _MIX_PAIRS, bits))[in_one]]
    )
    keys.sort()
    first = np.flatnonzero(np.concatenate([np.ones(min(1, len(keys)), bool), keys[1:] != keys[:-1]]))
    counts = np.diff(first, append=len(keys))
    found = keys[first]
    bounds = np.searchsorted(found, np.arange(len(texts) + 1, dtype=np.uint64) << np.uint64(bits))
    features = (found & np.uint64((1 << bits) - 1)).astype(np.int32)
    values = (1 + np.log(counts)).astype(np.float32)
    return csr_matrix((values, features, bounds.astype(np.int32)), shape=(len(texts), 1 << bits))


def _mix(hashes: NDArray[np.uint64], factor: int, bits: int) -> NDArray[np.uint64]:
    """The topmost `bits` of a product, on which all bits of the hashes bear."""
    mixed: NDArray[np.uint64] = ((hashes ^ (hashes >> np.uint64(32))) * np.uint64(factor)) >> np.uint64(64 - bits)
    return mixed


@functools.cache
def _kinds() -> NDArray[np.uint8]:
    """What each character [0x110000] is: part of a word, a word alone, or neither."""
    import regex

    # Surrogates, which stand for no character, would join to one.
    everything = "".join(" " if 0xD800 <= code < 0xE000 else chr(code) for code in range(0x110000))
    kinds = np.zeros(len(everything), np.uint8)
    for kind, pattern in ((_WORD, _WORDS), (_ALONE, _ALONES)):
        for found in regex.finditer(pattern, everything):
            kinds[slice(*found.span())] = kind
    return kinds


@functools.cache
def _powers(count: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """The first powers [count] of the hash's base, and of its inverse, modulo 2^64."""

    def powers(base: int) -> NDArray[np.uint64]:
        factors = np.full(count, base, np.uint64)
        factors[0] = 1
        return np.cumprod(factors)

    return powers(_BASE), powers(pow(_BASE, -1, 1 << 64))


class HashedDocuments:
    """Features of documents, hashed once and kept on disk: memory holds 8 bytes a document.

    Args:
        settings: what is hashed.
        scratch: a directory for the two files, about 6 KB for each document of 3,000 characters.
    """

    def __init__(self, settings: HashingSettings, scratch: Path) -> None:
        self.settings, self._scratch = settings, scratch
        self._bounds = [np.zeros(1, np.int64)]

    def __enter__(self) -> HashedDocuments:
        self._values = (self._scratch / "values").open("wb")
        self._features = (self._scratch / "features").open("wb")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._values.close()
        self._features.close()

    def add(self, texts: Sequence[str]) -> None:
        """Hash the next documents."""
        made = hash_texts(texts, self.settings)
        self._values.write(made.data.tobytes())
        self._features.write(made.indices.tobytes())
        self._bounds.append(self._bounds[-1][-1] + made.indptr[1:].astype(np.int64))

    def matrix(self) -> csr_matrix:
        """All features [documents, 2^bits], mapped from disk; as `hash_texts` gives them."""
        from scipy.sparse import csr_matrix

        self._values.flush()
        self._features.flush()
        bounds = np.concatenate(self._bounds)
        values, features = (
            np.memmap(file.name, dtype, "r") if bounds[-1] else np.empty(0, dtype)
            for file, dtype in ((self._values, np.float32), (self._features, np.int32))
        )
        return csr_matrix((values, features, bounds), shape=(len(bounds) - 1, 1 << self.settings.bits), copy=False)
