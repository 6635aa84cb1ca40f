"""Counts of documents by score, length and script, to detect a corpus that differs from the training documents.

Sources: Siddiqi 2006 (population stability index; above 0.25 it is a shift); Yurdakul 2018 (its distribution without a
shift: chi-squared, scaled by the sizes of both samples).
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from ml_filter.criterion import Criterion

BINS = 10
SHIFTED = 0.25
NO_SCRIPT = "no letters"
_CONFIDENCE = 0.99
_LETTERS = 100
"""Letters at the start of a text that decide about its script."""


class Profile(BaseModel):
    """Counts of documents.

    Attributes:
        scores: by criterion, in equal bins over its score range.
        lengths: by the largest power of two that is not above the text's length in UTF-8 bytes.
        scripts: by the writing system of most letters at the start of the text.
    """

    scores: dict[str, list[int]]
    lengths: dict[int, int] = {}
    scripts: dict[str, int] = {}

    @classmethod
    def of(cls, criteria: Iterable[Criterion]) -> Profile:
        """An empty profile."""
        return cls(scores={criterion.name: [0] * BINS for criterion in criteria})

    def add_texts(self, sizes: Iterable[int], scripts: Iterable[str]) -> None:
        """Count documents by length in bytes and by script."""
        self.lengths = _add(self.lengths, (max(size, 1).bit_length() - 1 for size in sizes))
        self.scripts = _add(self.scripts, scripts)

    def add_scores(self, criterion: Criterion, scores: NDArray[Any]) -> None:
        """Count documents by score; those that are not finite are left out."""
        counts = np.histogram(scores[np.isfinite(scores)], BINS, criterion.bounds)[0]
        self.scores[criterion.name] = (np.array(self.scores[criterion.name]) + counts).tolist()

    def add(self, part: Profile) -> None:
        """Add other documents."""
        self.lengths, self.scripts = _add(self.lengths, part.lengths), _add(self.scripts, part.scripts)
        for name, counts in part.scores.items():
            self.scores[name] = [a + b for a, b in zip(self.scores[name], counts, strict=True)]


class Shift(BaseModel):
    """How much one kind of counts differs from the training documents.

    Attributes:
        what: such as `length`.
        index: population stability index.
        by_chance: 99 in 100 indices of samples of these sizes are below it if nothing has shifted.
    """

    what: str
    index: float
    by_chance: float

    @property
    def is_shifted(self) -> bool:
        """Whether the difference is neither small nor due to chance."""
        return self.index > max(SHIFTED, self.by_chance)


def shifts(reference: Profile, current: Profile) -> list[Shift]:
    """The shift of every kind of counts that the training documents (`reference`) and others have in common."""
    results = [
        _shift(f"score ({name})", dict(enumerate(counts)), dict(enumerate(current.scores[name])))
        for name, counts in reference.scores.items()
        if name in current.scores
    ]
    results.append(_shift("length", reference.lengths, current.lengths))
    results.append(_shift("script", reference.scripts, current.scripts))
    return [shift for shift in results if shift is not None]


def stability_index(expected: Sequence[int], actual: Sequence[int]) -> float:
    """Population stability index of counts in the same classes: the sum of (a - e) ln(a / e) over shares a and e.

    Each class gets half a document more, so that empty ones have a logarithm.
    """
    e, a = (np.array(counts, np.float64) + 0.5 for counts in (expected, actual))
    e, a = e / e.sum(), a / a.sum()
    return float(((a - e) * np.log(a / e)).sum())


def script_of(text: str) -> str:
    """The writing system of most of the first letters, from their Unicode names: LATIN, CYRILLIC, CJK, ..."""
    scripts: Counter[str] = Counter()
    for letter in filter(str.isalpha, text[: 20 * _LETTERS]):
        scripts[unicodedata.name(letter, NO_SCRIPT).partition(" ")[0]] += 1
        if scripts.total() == _LETTERS:
            break
    return scripts.most_common(1)[0][0] if scripts else NO_SCRIPT


def _add(counts: Mapping[Any, int], values: Iterable[Any]) -> dict[Any, int]:
    return dict(sorted((Counter(counts) + Counter(values)).items()))


def _shift(what: str, expected: Mapping[Any, int], actual: Mapping[Any, int]) -> Shift | None:
    from scipy.stats import chi2

    classes = sorted({*expected, *actual})
    before, after = ([counts.get(name, 0) for name in classes] for counts in (expected, actual))
    if not sum(before) or not sum(after):
        return None
    by_chance = chi2.ppf(_CONFIDENCE, max(1, len(classes) - 1)) * (1 / sum(before) + 1 / sum(after))
    return Shift(what=what, index=stability_index(before, after), by_chance=float(by_chance))
