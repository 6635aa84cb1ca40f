"""Score the documents of many requests together, batch by batch, in order of arrival and in one thread.

A batch starts when it is full or when its first document has waited long enough.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
import traceback
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

from loguru import logger

from ml_filter.heads.kinds import Head
from ml_filter.serving.config import ServeConfig
from ml_filter.serving.documents import Document, ScoredDocument, failed_document, reject_reason, score_documents
from ml_filter.serving.metrics import Metrics

ENGINE_ERROR = "engine_error"


class QueueFull(Exception):
    """The queue has no room for these documents; retry after `retry_after_s`."""

    def __init__(self, waiting: int, retry_after_s: int) -> None:
        super().__init__(f"{waiting:,} documents are already waiting")
        self.retry_after_s = retry_after_s


@dataclass(eq=False, slots=True)
class _Waiting:
    document: Document
    since: float
    result: asyncio.Future[ScoredDocument]

    @property
    def characters(self) -> int:
        return len(self.document.text)


class Batcher:
    """The queue in front of an engine. Everything but the engine runs in the event loop."""

    def __init__(self, engine: Head, config: ServeConfig, metrics: Metrics, thread: Executor) -> None:
        self._engine, self._config, self._metrics, self._thread = engine, config, metrics, thread
        self._queue: deque[_Waiting] = deque()
        self._arrived = asyncio.Event()
        self._seconds_per_document = 0.0
        metrics.queue.set_function(lambda: len(self._queue))

    async def score(self, documents: Sequence[Document]) -> list[ScoredDocument]:
        """Return the result of each document, in order; if the caller is cancelled, waiting ones are not scored.

        Raises:
            QueueFull: the queue has not enough room for all of these documents; none of them was queued.
        """
        names, now = self._engine.info.names, asyncio.get_running_loop().time()
        futures: list[asyncio.Future[ScoredDocument]] = []
        waiting: list[_Waiting] = []
        for document in documents:
            future: asyncio.Future[ScoredDocument] = asyncio.get_running_loop().create_future()
            futures.append(future)
            if reason := reject_reason(document.text):
                future.set_result(failed_document(document, reason, names))
            else:
                waiting.append(_Waiting(document, now, future))
        if len(self._queue) + len(waiting) > self._config.max_queue:
            raise QueueFull(len(self._queue), max(1, math.ceil(len(self._queue) * self._seconds_per_document)))
        self._queue.extend(waiting)
        self._arrived.set()
        try:
            scored = await asyncio.gather(*futures)
        except asyncio.CancelledError:
            self._queue = deque(item for item in self._queue if not item.result.cancelled())
            raise
        for result in scored:
            self._metrics.documents.labels(result.status, result.reason or "").inc()
        return scored

    async def run(self) -> None:
        """Score queued documents until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await self._wait_for_batch()
            batch = self._next_batch()
            if not batch:  # all of its callers were cancelled
                continue
            started = time.perf_counter()
            results = await loop.run_in_executor(self._thread, self._score, [item.document for item in batch])
            seconds = time.perf_counter() - started
            for item, result in zip(batch, results, strict=True):
                if not item.result.done():
                    item.result.set_result(result)
            self._seconds_per_document = seconds / len(batch)
            self._metrics.batch_seconds.observe(seconds)
            self._metrics.batch_documents.observe(len(batch))
            self._metrics.characters.inc(sum(item.characters for item in batch))

    async def _wait_for_batch(self) -> None:
        while not self._queue:
            self._arrived.clear()
            await self._arrived.wait()
        deadline = self._queue[0].since + self._config.max_wait_ms / 1000
        while not self._is_full() and (remaining := deadline - asyncio.get_running_loop().time()) > 0:
            self._arrived.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._arrived.wait(), remaining)

    def _is_full(self) -> bool:
        return (
            len(self._queue) >= self._config.max_batch
            or sum(item.characters for item in self._queue) >= self._config.max_batch_characters
        )

    def _next_batch(self) -> list[_Waiting]:
        batch: list[_Waiting] = []
        room = self._config.max_batch_characters
        while self._queue and len(batch) < self._config.max_batch:
            room -= self._queue[0].characters
            if batch and room < 0:
                break
            batch.append(self._queue.popleft())
        return batch

    def _score(self, documents: list[Document]) -> list[ScoredDocument]:
        """Runs in the scoring thread. If the engine fails on a batch, each of its documents is retried alone."""
        try:
            return score_documents(self._engine, documents)
        except Exception as error:
            # The location only: the message may contain text of a document.
            frame = traceback.extract_tb(error.__traceback__)[-1]
            name = type(error).__name__
            logger.error(f"{name} at {frame.filename}:{frame.lineno} on {len(documents)} documents")
            if len(documents) > 1:
                return [result for document in documents for result in self._score([document])]
            return [failed_document(documents[0], f"{ENGINE_ERROR}: {name}", self._engine.info.names)]
