"""What documents look like to a head, in counts: to tell whether a corpus is like the documents it was trained on.

Sources: Siddiqi 2006 (the population stability index, and 0.25 as the mark of a shift); Yurdakul 2018 (its distribution
where nothing has shifted: chi-squared, scaled by the sizes of both samples).
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ml_filter.criterion import Criterion

BINS = 10
SHIFTED = 0.25
_CONFIDENCE = 0.99
_LETTERS = 100
NO_SCRIPT = "no letters"


class Profile(BaseModel):
    """Counts of documents.

    Attributes:
        scores: by criterion, in equal bins over its score range.
        lengths: by the power of two that the text's UTF-8 bytes reach.
        scripts: by the writing system of most letters at its start.
    """

    scores: dict[str, list[int]]
    lengths: dict[int, int] = {}
    scripts: dict[str, int] = {}

    @classmethod
    def of(cls, criteria: Iterable[Criterion]) -> Profile:
        """An empty one."""
        return cls(scores={criterion.name: [0] * BINS for criterion in criteria})

    def add_texts(self, sizes: Iterable[int], scripts: Iterable[str]) -> None:
        """Count documents by the bytes of their texts, and by script."""
        self.lengths = _added(self.lengths, (max(size, 1).bit_length() - 1 for size in sizes))
        self.scripts = _added(self.scripts, scripts)

    def add_scores(self, criterion: Criterion, scores: NDArray[Any]) -> None:
        """Count documents by score; those that are not finite have none."""
        found = np.histogram(scores[np.isfinite(scores)], BINS, (criterion.low, criterion.high))[0]
        self.scores[criterion.name] = [a + int(b) for a, b in zip(self.scores[criterion.name], found, strict=True)]


class Shift(BaseModel):
    """How far one kind of counts differs from that of the training documents."""

    what: str
    index: float
    by_chance: float
    """The index that samples of these sizes stay under 99 times in 100 where nothing has shifted."""

    @property
    def is_shifted(self) -> bool:
        """Whether it is more than a small difference, and more than chance."""
        return self.index > max(SHIFTED, self.by_chance)


def shifts(reference: Profile, now: Profile) -> list[Shift]:
    """The shifts from the training documents to others, of every kind of counts that both have."""
    made = [
        _shift(f"score ({name})", dict(enumerate(counts)), dict(enumerate(now.scores[name])))
        for name, counts in reference.scores.items()
        if name in now.scores
    ]
    made.append(_shift("length", reference.lengths, now.lengths))
    made.append(_shift("script", reference.scripts, now.scripts))
    return [shift for shift in made if shift is not None]


def stability_index(expected: Sequence[int], actual: Sequence[int]) -> float:
    """Population stability index of counts in the same classes: the sum of (a - e) ln(a / e) over shares a and e.

    Half a document is added to each class, so that an empty one has a logarithm.
    """
    e, a = (np.array(counts, np.float64) + 0.5 for counts in (expected, actual))
    e, a = e / e.sum(), a / a.sum()
    return float(((a - e) * np.log(a / e)).sum())


def script_of(text: str) -> str:
    """The writing system of most of the first letters, by their Unicode names: LATIN, CYRILLIC, CJK, ..."""
    found: Counter[str] = Counter()
    for letter in filter(str.isalpha, text[: 20 * _LETTERS]):
        found[unicodedata.name(letter, NO_SCRIPT).partition(" ")[0]] += 1
        if found.total() == _LETTERS:
            break
    return found.most_common(1)[0][0] if found else NO_SCRIPT


def _added(counts: Mapping[Any, int], more: Iterable[Any]) -> dict[Any, int]:
    return dict(sorted((Counter(counts) + Counter(more)).items()))


def _shift(what: str, expected: Mapping[Any, int], actual: Mapping[Any, int]) -> Shift | None:
    from scipy.stats import chi2

    classes = sorted({*expected, *actual})
    before, after = ([counts.get(name, 0) for name in classes] for counts in (expected, actual))
    if not sum(before) or not sum(after):
        return None
    chance = chi2.ppf(_CONFIDENCE, max(1, len(classes) - 1)) * (1 / sum(before) + 1 / sum(after))
    return Shift(what=what, index=stability_index(before, after), by_chance=float(chance))
