"""The documents that each model of an ablation is trained on.

Every arm is a random draw, from what the filter keeps (filtered), from the whole corpus (random), from what the filter
drops (rejected), from what it would keep if its decisions were dealt out at random (shuffled), or from another corpus.
Each seed draws anew, so that the luck of a draw is part of the intervals. All draws have the same bytes up to one
document, and are then cut to the same number of tokens, that of the shortest.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ml_filter.documents.manifest import digest_of
from ml_filter.downstream.ablation.config import FILTERED, RANDOM, REJECTED, SHUFFLED
from ml_filter.downstream.ablation.tokens import DOCUMENT, Corpus
from ml_filter.errors import ConfigError, InputError

DRAWN = np.dtype([("corpus", "u1"), ("document", DOCUMENT)])
"""A document, and which of the corpora it is in."""


class Arms:
    """Draws the documents of models.

    Args:
        corpora: `filtered` and `rejected`, which make up the filtered corpus, and any others, by name.
        tokens: unique tokens of an arm; None: as many as the smallest corpus has.

    Raises:
        ConfigError: a corpus has fewer tokens.
        InputError: a corpus is empty.
    """

    def __init__(self, corpora: Mapping[str, Corpus], tokens: int | None) -> None:
        self.corpora = dict(corpora)
        for name, corpus in corpora.items():
            if not len(corpus.documents):
                raise InputError(f"the arm {name} has no documents: there is nothing to compare")
        smallest = min(corpora, key=lambda name: corpora[name].bytes)
        self.bytes = corpora[smallest].bytes
        """Bytes of text in each arm, up to one document."""
        if tokens is not None:
            pool = [corpora[FILTERED], corpora[REJECTED]]
            per_token = sum(corpus.bytes for corpus in pool) / sum(len(corpus.tokens) for corpus in pool)
            if tokens * per_token > self.bytes:
                raise ConfigError(
                    f"arm_tokens is {tokens:,}, but the arm {smallest} has only {int(self.bytes / per_token):,} tokens"
                )
            self.bytes = int(tokens * per_token)

    def names(self) -> list[str]:
        """All arms: the four of a filter, and one for each further corpus."""
        return [FILTERED, RANDOM, REJECTED, SHUFFLED, *(n for n in self.corpora if n not in (FILTERED, REJECTED))]

    def draw(self, arm: str, seed: int) -> NDArray[np.void]:
        """The documents (DRAWN) of a model in the order in which they are read."""
        random = np.random.default_rng([seed, int(digest_of(arm)[:8], 16)])
        names = [FILTERED, REJECTED] if arm in (RANDOM, SHUFFLED) else [arm]
        parts = []
        for name in names:
            rows = np.zeros(len(self.corpora[name].documents), DRAWN)
            rows["corpus"], rows["document"] = list(self.corpora).index(name), self.corpora[name].documents
            parts.append(rows)
        documents = np.concatenate(parts)
        order = random.permutation(len(documents))
        if arm == SHUFFLED:  # as many documents as the filter keeps come first
            kept = random.permutation(len(documents))[: len(self.corpora[FILTERED].documents)]
            order = np.concatenate([kept, order[~np.isin(order, kept)]])
        end = int(np.searchsorted(np.cumsum(documents["document"]["bytes"][order]), self.bytes)) + 1
        return documents[order[:end]]

    def write(self, drawn: NDArray[np.void], count: int, path: Path) -> None:
        """Write the first `count` tokens of these documents to a file."""
        corpora = [corpus.tokens for corpus in self.corpora.values()]
        temporary, left = path.with_suffix(".tmp"), count
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            for number, (start, tokens, _) in zip(drawn["corpus"], drawn["document"], strict=True):
                file.write(corpora[number][start : start + min(tokens, left)].tobytes())
                left -= min(tokens, left)
        os.replace(temporary, path)
