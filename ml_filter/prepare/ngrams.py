"""Word n-grams of texts in any language, as 64-bit hashes.

Words are compared without case, punctuation and spacing, in Unicode compatibility form. In scripts without spaces
between words (Chinese, Japanese, Thai, Lao, Khmer, Burmese) each character counts as a word.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import numpy as np
import regex
from numpy.typing import NDArray
from rensa import RMinHash

MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
"""2**64 divided by the golden ratio: multiplying by it spreads a value over all bits."""
_HALF = np.uint64(32)
_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_WORD = regex.compile(rf"[{_UNSPACED}]\p{{M}}*|[\w--[{_UNSPACED}]]+", regex.V1)


def words(text: str) -> list[str]:
    """The normalised words of a text in order; if it has no letters or digits, its parts between spaces."""
    normalised = unicodedata.normalize("NFKC", text).casefold()
    return _WORD.findall(normalised) or normalised.split()


def ngram_hashes(texts: Sequence[str], n: int) -> list[NDArray[np.uint64]]:
    """The hashes of each text's n-grams, in order; a text of fewer than `n` words is one n-gram of all its words."""
    hashes = RMinHash.hash_token_sets([words(text) for text in texts])
    return [_combine(mix(np.array(row, dtype=np.uint64)), n) for row in hashes]


def _combine(hashes: NDArray[np.uint64], n: int) -> NDArray[np.uint64]:
    n = min(n, len(hashes))
    combined = np.zeros(len(hashes) - n + 1 if n else 0, dtype=np.uint64)
    for position in range(n):
        combined = combined * MULTIPLIER + hashes[position : len(hashes) - n + 1 + position]
    return mix(combined)


def mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The values with every bit spread over all bits; distinct values stay distinct."""
    spread = (values ^ (values >> _HALF)) * MULTIPLIER
    return spread ^ (spread >> _HALF)
