"""Search an index: dense, BM25 or hybrid, with conditions, then ordered more finely by a reranker."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from ml_filter.downstream.retrieval.config import RESERVED_COLUMNS, SearchConfig, Where
from ml_filter.downstream.retrieval.encoding import CrossEncoder
from ml_filter.downstream.retrieval.index import Index
from ml_filter.downstream.retrieval.stores import Hit, Query
from ml_filter.errors import ConfigError


@dataclass(frozen=True)
class Result:
    """A passage that was found.

    Attributes:
        passage: what was searched; `context`: the larger passage around it.
        score: by which the results are ordered; its scale depends on the mode.
        similarity: cosine between question and passage.
        columns: of its document.
    """

    document_id: str
    passage: str
    context: str
    score: float
    similarity: float
    columns: dict[str, Any]

    @property
    def url(self) -> str | None:
        """URL of the document, if it has one."""
        return self.columns.get("url")

    @property
    def title(self) -> str:
        """What the document is called: its URL or id."""
        return self.url or self.document_id


class Searcher:
    """Searches one index.

    Raises:
        ConfigError: a condition names a column that the index does not have, or the cross-encoder cannot be loaded.
    """

    def __init__(self, index: Index, config: SearchConfig) -> None:
        self.index, self.config = index, config
        for condition in config.where:
            if problem := self.problem_with(condition):
                raise ConfigError(problem)
        self._cross_encoder = (
            CrossEncoder(config.cross_encoder, index.config) if config.cross_encoder is not None else None
        )

    @cached_property
    def columns(self) -> list[str]:
        """The columns that conditions can name."""
        return [*self.index.config.payload_columns, "document_id"]

    def problem_with(self, condition: Where) -> str | None:
        """Why a condition cannot be used; None: it can."""
        if condition.name in self.columns:
            return None
        return f"the index has no column {condition.name!r} (for {condition}); it has {', '.join(self.columns)}"

    def search(
        self, question: str, paraphrases: Sequence[str] = (), passages: Sequence[str] = (), where: Sequence[Where] = ()
    ) -> list[Result]:
        """The best passages, best first, each context once. Empty if none is similar enough to the question.

        Args:
            paraphrases: further questions to search for.
            passages: further texts to search for, as passages.
            where: further conditions.
        """
        config, index = self.config, self.index
        hits = self.hits(question, paraphrases, passages, where)
        if not hits or max(hit.similarity for hit in hits) < config.min_similarity:
            return []
        hits = hits[: config.limit]
        parents = index.store.payloads([hit.payload["parent_id"] for hit in hits])
        return [
            Result(
                document_id=hit.payload["document_id"],
                passage=hit.payload["text"],
                context=parents.get(hit.payload["parent_id"], hit.payload)["text"],
                score=hit.score,
                similarity=hit.similarity,
                columns={name: value for name, value in hit.payload.items() if name not in RESERVED_COLUMNS},
            )
            for hit in hits
        ]

    def hits(
        self, question: str, paraphrases: Sequence[str] = (), passages: Sequence[str] = (), where: Sequence[Where] = ()
    ) -> list[Hit]:
        """All passages found, best first: the reranked ones, then the others."""
        config, encoder = self.config, self.index.encoder
        texts = [question, *paraphrases]
        vectors = encoder.questions(texts)
        if passages:
            import numpy as np

            vectors = np.concatenate([vectors, encoder.passages(passages)])
        query = Query(vectors, texts, [*config.where, *where])
        hits = list(_distinct(self.index.store.search(query, config.mode, config.fusion, config.candidates)))
        return self._reranked(question, hits)

    def _reranked(self, question: str, hits: list[Hit]) -> list[Hit]:
        first, others = hits[: self.config.rerank_candidates], hits[self.config.rerank_candidates :]
        if self.config.rerank == "none" or not first:
            return hits
        texts = [hit.payload["text"] for hit in first]
        if self._cross_encoder is not None:
            scores = self._cross_encoder.scores(question, texts)
        else:
            scores = self.index.encoder.max_sim(question, texts)
        scored = [replace(hit, score=score) for hit, score in zip(first, scores, strict=True)]
        return [*sorted(scored, key=lambda hit: -hit.score), *others]


def _distinct(hits: Sequence[Hit]) -> Iterator[Hit]:
    """The hits without a second passage of a parent, or a second copy of a text, such as a licence."""
    seen: set[str] = set()
    for hit in hits:
        keys = {hit.payload["parent_id"], hit.payload["text"]}
        if not keys & seen:
            yield hit
        seen |= keys
