"""Score the documents of many requests together.

Documents wait in the order they came, and one thread scores them batch by batch. A batch is due when it is full or when
its first document has waited long enough, so what comes while the head is busy makes up the next one.
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

from ml_filter.heads.engine import Engine
from ml_filter.serving.config import ServeConfig
from ml_filter.serving.documents import Outcome, outcomes_of, unusable
from ml_filter.serving.metrics import Metrics

ENGINE_ERROR = "engine_error"


class QueueFull(Exception):
    """There is no room for so many documents; there may be in `retry_after_s`."""

    def __init__(self, waiting: int, retry_after_s: int) -> None:
        super().__init__(f"{waiting:,} documents wait already")
        self.retry_after_s = retry_after_s


@dataclass(eq=False, slots=True)
class _Waiting:
    text: str
    since: float
    outcome: asyncio.Future[Outcome]


class Batcher:
    """The queue before an engine. All but the engine runs in the event loop."""

    def __init__(self, engine: Engine, config: ServeConfig, metrics: Metrics, thread: Executor) -> None:
        self._engine, self._config, self._metrics, self._thread = engine, config, metrics, thread
        self._queue: deque[_Waiting] = deque()
        self._arrived = asyncio.Event()
        self._seconds_each = 0.0
        metrics.queue.set_function(lambda: len(self._queue))

    async def score(self, texts: Sequence[str]) -> list[Outcome]:
        """What became of each text, in their order.

        Of a caller that is cancelled, texts that still wait are not scored.

        Raises:
            QueueFull: there is no room for these texts; none of them was taken.
        """
        reasons = [unusable(text) for text in texts]
        loop = asyncio.get_running_loop()
        taken = [
            _Waiting(text, loop.time(), loop.create_future())
            for text, reason in zip(texts, reasons, strict=True)
            if reason is None
        ]
        if len(self._queue) + len(taken) > self._config.max_queue:
            raise QueueFull(len(self._queue), max(1, math.ceil(len(self._queue) * self._seconds_each)))
        self._queue.extend(taken)
        self._arrived.set()
        try:
            scored = iter(await asyncio.gather(*(one.outcome for one in taken)))
        except asyncio.CancelledError:
            self._queue = deque(one for one in self._queue if not one.outcome.cancelled())
            raise
        outcomes = [next(scored) if reason is None else Outcome(reason=reason) for reason in reasons]
        for outcome in outcomes:
            self._metrics.documents.labels("failed" if outcome.reason else "scored", outcome.reason or "").inc()
        return outcomes

    async def run(self) -> None:
        """Score what waits, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await self._batch_is_due()
            batch = self._take()
            if not batch:  # its callers have gone
                continue
            started = time.perf_counter()
            outcomes = await loop.run_in_executor(self._thread, self._score, [one.text for one in batch])
            seconds = time.perf_counter() - started
            for one, outcome in zip(batch, outcomes, strict=True):
                if not one.outcome.done():
                    one.outcome.set_result(outcome)
            self._seconds_each = seconds / len(batch)
            self._metrics.batch_seconds.observe(seconds)
            self._metrics.batch_documents.observe(len(batch))
            self._metrics.characters.inc(sum(len(one.text) for one in batch))

    async def _batch_is_due(self) -> None:
        while not self._queue:
            self._arrived.clear()
            await self._arrived.wait()
        until = self._queue[0].since + self._config.max_wait_ms / 1000
        while not self._is_full() and (left := until - asyncio.get_running_loop().time()) > 0:
            self._arrived.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._arrived.wait(), left)

    def _is_full(self) -> bool:
        config = self._config
        return (
            len(self._queue) >= config.max_batch
            or sum(len(one.text) for one in self._queue) >= config.max_batch_characters
        )

    def _take(self) -> list[_Waiting]:
        batch: list[_Waiting] = []
        room = self._config.max_batch_characters
        while self._queue and len(batch) < self._config.max_batch:
            room -= len(self._queue[0].text)
            if batch and room < 0:
                break
            batch.append(self._queue.popleft())
        return batch

    def _score(self, texts: list[str]) -> list[Outcome]:
        """In the scoring thread. When the engine fails on a batch, each of its documents is tried alone."""
        try:
            return outcomes_of(self._engine, texts)
        except Exception as error:
            _log(error, len(texts))
            if len(texts) > 1:
                return [outcome for text in texts for outcome in self._score([text])]
            return [Outcome(reason=f"{ENGINE_ERROR}: {type(error).__name__}")]


def _log(error: Exception, documents: int) -> None:
    """Where the engine failed; not the message, which may hold text of a document."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    logger.error(f"{type(error).__name__} at {place.filename}:{place.lineno} on {documents} documents")
