"""The documents that each model of an ablation is trained on.

Every arm is a random draw, from what the filter keeps (filtered), from the whole corpus (random), from what the filter
drops (rejected), from what it would keep if its decisions were dealt out at random (shuffled), or from another corpus.
Each seed draws anew, so that the luck of a draw is part of the intervals. The draws of the filter's four arms have the
same bytes up to one document. All arms are then cut to the same number of tokens, that of the shortest of these draws:
a further corpus does not change what the filter is judged by.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ml_filter.documents.manifest import digest_of
from ml_filter.downstream.ablation.config import ARMS, FILTERED, RANDOM, REJECTED, SHUFFLED
from ml_filter.downstream.ablation.tokens import DOCUMENT, Corpus
from ml_filter.errors import ConfigError, InputError

DRAWN = np.dtype([("corpus", "u1"), ("document", DOCUMENT)])
"""A document, and which of the corpora it is in."""


class Arms:
    """Draws the documents of models.

    Args:
        corpora: `filtered` and `rejected`, which make up the filtered corpus, and any others, by name.
        tokens: unique tokens of an arm; None: as many as the smaller of `filtered` and `rejected` has.

    Raises:
        ConfigError: one of these has fewer tokens.
        InputError: a corpus is empty.
    """

    def __init__(self, corpora: Mapping[str, Corpus], tokens: int | None) -> None:
        self.corpora = dict(corpora)
        for name, corpus in corpora.items():
            if not len(corpus.documents):
                raise InputError(f"the arm {name} has no documents: there is nothing to compare")
        smallest = min((FILTERED, REJECTED), key=lambda name: corpora[name].bytes)
        self.bytes, self.tokens = corpora[smallest].bytes, tokens
        """Bytes of text in each arm of the filter, up to one document, and the most tokens in all arms."""
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
        return [*ARMS, *(name for name in self.corpora if name not in ARMS)]

    def shortest(self, seeds_and_arms: Iterable[tuple[int, str]]) -> int:
        """The tokens of the shortest of these draws, among the arms of the filter; at most those configured."""
        draws = (self.draw(arm, seed)["document"]["tokens"] for seed, arm in seeds_and_arms if arm in ARMS)
        fewest = min(int(tokens.sum()) for tokens in draws)
        return fewest if self.tokens is None else min(fewest, self.tokens)

    def require(self, tokens: int) -> None:
        """Check that the further corpora have as many tokens.

        Raises:
            ConfigError: one has fewer.
        """
        for name in self.corpora:
            available = int(self.corpora[name].documents["tokens"].sum())
            if name not in ARMS and available < tokens:
                raise ConfigError(
                    f"corpora.{name} has only {available:,} tokens, and each arm has {tokens:,}; set arm_tokens to at "
                    f"most {available:,}, or use a larger corpus"
                )

    def draw(self, arm: str, seed: int) -> NDArray[np.void]:
        """The documents (DRAWN) of a model in the order in which they are read; of a further corpus, all."""
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
        if arm not in ARMS:
            return documents[order]
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
                if not left:
                    break
        os.replace(temporary, path)
