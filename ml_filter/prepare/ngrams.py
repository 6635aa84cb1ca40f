"""Word n-grams of texts in any language, as 64-bit hashes.

Words are compared without case, punctuation and spacing, and in Unicode's compatibility form. In scripts that set
no spaces between words (Chinese, Japanese, Thai, Lao, Khmer, Burmese) each character counts as a word.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import numpy as np
import regex
from numpy.typing import NDArray
from rensa import RMinHash

_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_WORD = regex.compile(rf"[{_UNSPACED}]\p{{M}}*|[\w--[{_UNSPACED}]]+", regex.V1)
_ODD = np.uint64(0x9E3779B97F4A7C15)  # 2**64 over the golden ratio: spreads what is multiplied over all bits
_HALF = np.uint64(32)


def words(text: str) -> list[str]:
    """The words of a text in order, folded; of a text without letters and digits, what stands between its spaces."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return _WORD.findall(folded) or folded.split()


def ngram_hashes(texts: Sequence[str], n: int) -> list[NDArray[np.uint64]]:
    """The hashes of each text's n-grams, in order; a text of fewer than `n` words is one n-gram of them all."""
    hashes = RMinHash.hash_token_sets([words(text) for text in texts])
    return [_join(mix(np.array(row, dtype=np.uint64)), n) for row in hashes]


def _join(hashes: NDArray[np.uint64], n: int) -> NDArray[np.uint64]:
    n = min(n, len(hashes))
    joined = np.zeros(len(hashes) - n + 1 if n else 0, dtype=np.uint64)
    for place in range(n):
        joined = joined * _ODD + hashes[place : len(hashes) - n + 1 + place]
    return mix(joined)


def mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The values with every bit spread over all bits; different values stay different."""
    spread = (values ^ (values >> _HALF)) * _ODD
    return spread ^ (spread >> _HALF)
