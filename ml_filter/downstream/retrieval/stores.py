"""Where an index keeps its points: qdrant-edge in a directory, or a Qdrant server.

Both hold the same points. One of a passage has a dense vector, a sparse one (BM25: the weights of its words, whose
inverse document frequencies the store adds) and a payload with the digest of its shard. One of a parent has its text
and no vectors.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ml_filter.config import Settings
from ml_filter.downstream.retrieval.config import Fusion, Mode, Where
from ml_filter.errors import ConfigError, InputError
from ml_filter.extras import require_extra

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

DENSE, SPARSE = "dense", "bm25"
SHARD, PARENT_OF = "shard", "parent_of"
"""Payload of the digest of a shard: of its passages, and of their parents."""
_KEYWORDS = (SHARD, PARENT_OF, "language", "source")
_RRF_K = 60
"""Cormack, Clarke and Büttcher 2009, Reciprocal rank fusion."""
_MAX_SHARDS = 1_000_000


@dataclass(frozen=True)
class Point:
    """A passage, or without a vector a parent."""

    id: str
    payload: Mapping[str, Any]
    vector: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Query:
    """What to search for: vectors [n, width] and texts for BM25, each with its own ranking."""

    vectors: NDArray[np.float32]
    texts: Sequence[str]
    where: Sequence[Where] = ()


@dataclass(frozen=True)
class Hit:
    """A passage that was found; `similarity` is the largest cosine with a vector of the query."""

    id: str
    score: float
    similarity: float
    payload: Mapping[str, Any] = field(repr=False)


class Store(ABC):
    """The points of one index. `words` makes the sparse vectors, in the same way for every store."""

    def __init__(self, words: Words) -> None:
        self.words = words

    @abstractmethod
    def put(self, points: Sequence[Point]) -> None:
        """Write points; those with the same ids are replaced."""

    @abstractmethod
    def vectors(self, ids: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """The dense vectors of those points that exist."""

    @abstractmethod
    def payloads(self, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """The payloads of those points that exist."""

    @abstractmethod
    def shards(self) -> dict[str, int]:
        """How many passages there are of each shard, by its digest."""

    @abstractmethod
    def delete_shard(self, digest: str) -> None:
        """Delete the passages and parents of a shard."""

    @abstractmethod
    def search(self, query: Query, mode: Mode, fusion: Fusion, candidates: int) -> list[Hit]:
        """The passages that fit best, best first: `candidates` of each ranking, combined."""

    @abstractmethod
    def flush(self) -> None:
        """Make everything written so far durable."""

    @abstractmethod
    def optimize(self) -> None:
        """Build the graph that makes searching a large index fast."""

    @abstractmethod
    def close(self) -> None:
        """Release what is open."""


class Words:
    """Sparse vectors of BM25. `language` is that of stop words and stems; `none` uses words as they are.

    Args:
        length: mean number of words of a passage.
    """

    def __init__(self, language: str, length: float) -> None:
        edge = _import_edge()
        is_plain = language == "none"
        try:
            config = edge.Bm25Config(
                language=None if is_plain else language,
                avg_len=length,
                **({"stopwords": edge.StopwordsSet(), "stemmer": edge.DisabledStemmer()} if is_plain else {}),
            )
            self._model = edge.Bm25(config)
        except (ValueError, TypeError) as error:
            known = ", ".join(name.lower() for name in dir(edge.Language) if not name.startswith("_"))
            raise ConfigError(f"word_language (--word-language): {error}; use one of {known}, or none") from error

    def of_passage(self, text: str) -> tuple[list[int], list[float]]:
        """Indices and weights of the words of a passage."""
        sparse = self._model.embed_document(text)
        return sparse.indices, sparse.values

    def of_query(self, text: str) -> tuple[list[int], list[float]]:
        """Indices and weights of the words of a question."""
        sparse = self._model.embed_query(text)
        return sparse.indices, sparse.values


def _import_edge() -> Any:
    require_extra("retrieve", "an index", "qdrant_edge")
    import qdrant_edge

    return qdrant_edge


def _similarity(query: Query, vector: Any) -> float:
    dense = np.asarray(vector[DENSE] if isinstance(vector, Mapping) else vector, np.float32)
    return float((query.vectors @ dense).max()) if len(query.vectors) else 0.0


class EdgeStore(Store):
    """qdrant-edge in a local directory. Several processes may read it at once.

    There is no write-ahead log, which would lock readers out: what was not flushed is written again by the next run.

    Raises:
        InputError: the directory is damaged.
    """

    def __init__(self, directory: Path, width: int, words: Words) -> None:
        super().__init__(words)
        self._edge = edge = _import_edge()
        try:
            if directory.exists() and any(directory.iterdir()):
                self._shard = edge.EdgeShard.load(str(directory))
                return
            directory.mkdir(parents=True, exist_ok=True)
            config = edge.EdgeConfig(
                vectors={DENSE: edge.EdgeVectorParams(size=width, distance=edge.Distance.Cosine)},
                sparse_vectors={SPARSE: edge.EdgeSparseVectorParams(modifier=edge.Modifier.Idf)},
                wal_enabled=False,
            )
            self._shard = edge.EdgeShard.create(str(directory), config)
            for name in _KEYWORDS:
                self._shard.update(edge.UpdateOperation.create_field_index(name, edge.PayloadSchemaType.Keyword))
            self._shard.update(edge.UpdateOperation.create_field_index("score", edge.PayloadSchemaType.Float))
            self._shard.flush()
        except Exception as error:  # qdrant-edge raises nothing more specific
            raise InputError(f"{directory} cannot be opened ({error}); delete it and index again") from error

    def put(self, points: Sequence[Point]) -> None:
        """Write points; those with the same ids are replaced."""
        edge = self._edge
        rows = []
        for point in points:
            vectors: dict[str, Any] = {}
            if point.vector is not None:
                sparse = edge.SparseVector(*self.words.of_passage(point.payload["text"]))
                vectors = {DENSE: point.vector.tolist(), SPARSE: sparse}
            rows.append(edge.Point(point.id, vectors, dict(point.payload)))
        self._shard.update(edge.UpdateOperation.upsert_points(rows))

    def vectors(self, ids: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """The dense vectors of those points that exist."""
        records = self._shard.retrieve(list(ids), with_payload=False, with_vector=[DENSE])
        return {str(record.id): np.asarray(record.vector[DENSE], np.float32) for record in records if record.vector}

    def payloads(self, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """The payloads of those points that exist."""
        records = self._shard.retrieve(list(ids), with_payload=True, with_vector=False)
        return {str(record.id): dict(record.payload or {}) for record in records}

    def shards(self) -> dict[str, int]:
        """How many passages there are of each shard, by its digest."""
        response = self._shard.facet(self._edge.FacetRequest(SHARD, limit=_MAX_SHARDS, exact=True))
        return {str(hit.value): int(hit.count) for hit in response.hits}

    def delete_shard(self, digest: str) -> None:
        """Delete the passages and parents of a shard."""
        edge = self._edge
        conditions = [edge.FieldCondition(name, match=edge.MatchValue(digest)) for name in (SHARD, PARENT_OF)]
        self._shard.update(edge.UpdateOperation.delete_points_by_filter(edge.Filter(should=conditions)))

    def search(self, query: Query, mode: Mode, fusion: Fusion, candidates: int) -> list[Hit]:
        """The passages that fit best, best first: `candidates` of each ranking, combined."""
        edge, chosen = self._edge, self._filter(query.where)
        rankings = []
        if mode != "bm25":
            rankings += [edge.Query.Nearest(vector.tolist(), using=DENSE) for vector in query.vectors]
        if mode != "dense":
            sparse = [edge.SparseVector(*self.words.of_query(text)) for text in query.texts]
            rankings += [edge.Query.Nearest(vector, using=SPARSE) for vector in sparse]
        parts: dict[str, Any] = {"query": rankings[0], "filter": chosen}
        if len(rankings) > 1:
            combined = edge.Fusion.Dbsf() if fusion == "dbsf" else edge.Fusion.Rrf(k=_RRF_K)
            prefetches = [edge.Prefetch(candidates, query=ranking, filter=chosen) for ranking in rankings]
            parts = {"query": combined, "prefetches": prefetches}
        limit = candidates * len(rankings)
        request = edge.QueryRequest(limit=limit, with_payload=True, with_vector=[DENSE], **parts)
        return [
            Hit(str(point.id), point.score, _similarity(query, point.vector), point.payload or {})
            for point in self._shard.query(request)
        ]

    def _filter(self, where: Sequence[Where]) -> Any:
        edge = self._edge
        must: list[Any] = []
        must_not: list[Any] = []
        for condition in where:
            bounds = _bounds(condition)
            if bounds:
                must.append(edge.FieldCondition(condition.name, range=edge.RangeFloat(**bounds)))
                continue
            any_of = [edge.FieldCondition(condition.name, match=edge.MatchAny(condition.values))]
            for value in _numbers(condition):
                any_of.append(edge.FieldCondition(condition.name, range=edge.RangeFloat(gte=value, lte=value)))
            (must if condition.op == "==" else must_not).append(edge.Filter(should=any_of))
        return edge.Filter(must=must, must_not=must_not) if where else None

    def flush(self) -> None:
        """Make everything written so far durable."""
        self._shard.flush()

    def optimize(self) -> None:
        """Build the graph that makes searching a large index fast."""
        self._shard.optimize()
        self._shard.flush()

    def close(self) -> None:
        """Release the files."""
        self._shard.close()


_BOUNDS = {"<=": "lte", "<": "lt", ">=": "gte", ">": "gt"}


def _bounds(condition: Where) -> dict[str, float]:
    return {_BOUNDS[condition.op]: float(condition.values[0])} if condition.op in _BOUNDS else {}


def _numbers(condition: Where) -> list[float]:
    return [number for value in condition.values if (number := Where.number(value)) is not None]


class ServerStore(Store):
    """A collection of a Qdrant server.

    Raises:
        InputError: the server cannot be reached, or refuses.
    """

    def __init__(self, client: QdrantClient, url: str, collection: str, width: int, words: Words) -> None:
        from qdrant_client import models

        super().__init__(words)
        self._client, self._url, self._collection, self._models = client, url, collection, models
        with self._reaching():
            if not client.collection_exists(collection):
                client.create_collection(
                    collection,
                    vectors_config={DENSE: models.VectorParams(size=width, distance=models.Distance.COSINE)},
                    sparse_vectors_config={SPARSE: models.SparseVectorParams(modifier=models.Modifier.IDF)},
                )
            indexed = client.get_collection(collection).payload_schema  # a kill may have left some out
            keyword, number = models.PayloadSchemaType.KEYWORD, models.PayloadSchemaType.FLOAT
            for name, kind in {**dict.fromkeys(_KEYWORDS, keyword), "score": number}.items():
                if name not in indexed:
                    client.create_payload_index(collection, name, kind)

    def put(self, points: Sequence[Point]) -> None:
        """Write points; those with the same ids are replaced."""
        models = self._models
        rows = []
        for point in points:
            vectors: dict[str, Any] = {}
            if point.vector is not None:
                indices, values = self.words.of_passage(point.payload["text"])
                vectors = {DENSE: point.vector.tolist(), SPARSE: models.SparseVector(indices=indices, values=values)}
            rows.append(models.PointStruct(id=point.id, vector=vectors, payload=dict(point.payload)))
        with self._reaching():
            self._client.upsert(self._collection, rows, wait=True)

    def vectors(self, ids: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """The dense vectors of those points that exist."""
        with self._reaching():
            records = self._client.retrieve(self._collection, list(ids), with_payload=False, with_vectors=[DENSE])
        vectors = {str(record.id): record.vector for record in records}
        return {
            id_: np.asarray(v[DENSE], np.float32) for id_, v in vectors.items() if isinstance(v, dict) and DENSE in v
        }

    def payloads(self, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """The payloads of those points that exist."""
        with self._reaching():
            records = self._client.retrieve(self._collection, list(ids))
        return {str(record.id): dict(record.payload or {}) for record in records}

    def shards(self) -> dict[str, int]:
        """How many passages there are of each shard, by its digest."""
        with self._reaching():
            response = self._client.facet(self._collection, SHARD, limit=_MAX_SHARDS, exact=True)
        return {str(hit.value): hit.count for hit in response.hits}

    def delete_shard(self, digest: str) -> None:
        """Delete the passages and parents of a shard."""
        models = self._models
        match = models.MatchValue(value=digest)
        conditions: list[Any] = [models.FieldCondition(key=name, match=match) for name in (SHARD, PARENT_OF)]
        with self._reaching():
            self._client.delete(self._collection, models.Filter(should=conditions), wait=True)

    def search(self, query: Query, mode: Mode, fusion: Fusion, candidates: int) -> list[Hit]:
        """The passages that fit best, best first: `candidates` of each ranking, combined."""
        models, chosen = self._models, self._filter(query.where)
        rankings: list[tuple[Any, str]] = []
        if mode != "bm25":
            rankings += [(vector.tolist(), DENSE) for vector in query.vectors]
        if mode != "dense":
            words = [self.words.of_query(text) for text in query.texts]
            rankings += [(models.SparseVector(indices=indices, values=values), SPARSE) for indices, values in words]
        parts: dict[str, Any] = {"query": rankings[0][0], "using": rankings[0][1], "query_filter": chosen}
        if len(rankings) > 1:
            by_rank = models.RrfQuery(rrf=models.Rrf(k=_RRF_K))
            parts = {
                "query": models.FusionQuery(fusion=models.Fusion.DBSF) if fusion == "dbsf" else by_rank,
                "prefetch": [
                    models.Prefetch(query=ranking, using=using, filter=chosen, limit=candidates)
                    for ranking, using in rankings
                ],
            }
        with self._reaching():
            response = self._client.query_points(
                self._collection, limit=candidates * len(rankings), with_payload=True, with_vectors=[DENSE], **parts
            )
        return [
            Hit(str(point.id), point.score, _similarity(query, point.vector), point.payload or {})
            for point in response.points
        ]

    def _filter(self, where: Sequence[Where]) -> Any:
        models = self._models
        must: list[Any] = []
        must_not: list[Any] = []
        for condition in where:
            bounds = _bounds(condition)
            if bounds:
                must.append(models.FieldCondition(key=condition.name, range=models.Range(**bounds)))
                continue
            any_of: list[Any] = [
                models.FieldCondition(key=condition.name, match=models.MatchAny(any=condition.values)),
                *(
                    models.FieldCondition(key=condition.name, range=models.Range(gte=value, lte=value))
                    for value in _numbers(condition)
                ),
            ]
            (must if condition.op == "==" else must_not).append(models.Filter(should=any_of))
        return models.Filter(must=must, must_not=must_not) if where else None

    def flush(self) -> None:
        """Nothing to do: the server answers when it has written."""

    def optimize(self) -> None:
        """Nothing to do: the server does this by itself."""

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        from qdrant_client.http.exceptions import ResponseHandlingException

        try:
            yield
        except Exception as error:  # of qdrant-client, its HTTP client and gRPC
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
            server = f"the Qdrant server at {self._url}"
            if isinstance(error, ResponseHandlingException):
                raise InputError(f"{server} does not answer ({reason}); check --store") from error
            raise InputError(
                f"{server} cannot be used ({reason}); check --store, ML_FILTER_QDRANT_API_KEY and the server"
            ) from error


def connect(url: str, settings: Settings) -> QdrantClient:
    """A client of a Qdrant server.

    Raises:
        ConfigError: the client is not installed, or the URL is not one of HTTP.
    """
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"store {url!r} is not the URL of a Qdrant server, such as http://localhost:6333")
    require_extra("retrieve", "a Qdrant server", "qdrant_client")
    from qdrant_client import QdrantClient

    key = settings.qdrant_api_key.get_secret_value() if settings.qdrant_api_key else None
    return QdrantClient(url=url, api_key=key, check_compatibility=False)


@contextmanager
def open_store(
    directory: Path, url: str | None, collection: str | None, width: int, words: Words, settings: Settings
) -> Iterator[Store]:
    """The store in a local directory, or the collection of a server."""
    store: Store
    if url is None:
        store = EdgeStore(directory, width, words)
    else:
        assert collection is not None
        store = ServerStore(connect(url, settings), url, collection, width, words)
    try:
        yield store
    finally:
        store.close()
