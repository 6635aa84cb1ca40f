"""A running service: loads the head in a thread, scores documents of many requests together, counts what it does.

Documents queue in order of arrival. A batch starts when it is full or when its first document has waited long enough.
docs/serving.md describes the metrics.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
import traceback
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeVar

from fastapi import HTTPException
from loguru import logger
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ml_filter.heads.kinds import Head
from ml_filter.serving.config import ServeConfig
from ml_filter.serving.documents import (
    Document,
    HeadDescription,
    ScoredDocument,
    failed_document,
    reject_reason,
    score_documents,
)

PATHS = ("/score", "/health", "/info", "/metrics")
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_DOCUMENTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class Metrics:
    """Counters, gauges and histograms. Each service has its own registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        counter = partial(Counter, namespace="ml_filter", registry=self.registry)
        histogram = partial(Histogram, namespace="ml_filter", registry=self.registry)
        gauge = partial(Gauge, namespace="ml_filter", registry=self.registry)
        self.requests = counter("requests", "Requests answered", ("path", "code"))
        self.score_seconds = histogram("score_seconds", "Duration of requests to /score", buckets=_SECONDS)
        self.documents = counter("documents", "Documents answered", ("status", "reason"))
        self.characters = counter("characters", "Characters scored")
        self.batch_documents = histogram("batch_documents", "Documents in a batch", buckets=_DOCUMENTS)
        self.batch_seconds = histogram("batch_seconds", "Time to score a batch", buckets=_SECONDS)
        self.queue = gauge("queue_documents", "Documents waiting")
        self.held_bytes = gauge("held_bytes", "Bytes of requests in progress")
        self.ready = gauge("ready", "1 if the service accepts documents")


class CountRequests:
    """ASGI middleware that counts every request by path and status code, including requests to unknown paths."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and count it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, code = time.perf_counter(), 500

        async def send_and_note_code(message: Message) -> None:
            nonlocal code
            if message["type"] == "http.response.start":
                code = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, send_and_note_code)
        finally:
            # One label for all unknown paths: a client could fill the memory with invented ones.
            path = scope["path"] if scope["path"] in PATHS else "other"
            self.metrics.requests.labels(path, code).inc()
            if path == "/score":
                self.metrics.score_seconds.observe(time.perf_counter() - started)


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


CLIENT_GONE = 499
"""nginx's code for requests whose client disconnected. It only appears in the metrics: nobody receives it."""

Result = TypeVar("Result")


class Service:
    """A service is `loading`, `ready` or `stopping`; it accepts documents only if it is ready.

    `load` returns the engine and its description; it is called once, in the scoring thread.
    """

    def __init__(
        self,
        load: Callable[[], tuple[Head, HeadDescription]],
        config: ServeConfig,
        on_ready: Callable[[HeadDescription], None] = lambda description: None,
    ) -> None:
        self.config, self.metrics = config, Metrics()
        self.error: Exception | None = None
        self.stopping = False
        self.open_requests = 0
        self.description: HeadDescription | None = None
        self._load, self._on_ready = load, on_ready
        self._thread = ThreadPoolExecutor(1, "scoring")
        self._batcher: Batcher | None = None
        self._held_bytes = 0
        self.metrics.held_bytes.set_function(lambda: self._held_bytes)
        self.metrics.ready.set_function(lambda: self.status == "ready")

    @property
    def status(self) -> Literal["loading", "ready", "stopping"]:
        """Whether the service accepts documents."""
        if self.stopping or self.error is not None:
            return "stopping"
        return "loading" if self._batcher is None else "ready"

    async def run(self) -> None:
        """Load the head and score until cancelled. `error` is set if this fails."""
        try:
            loading = asyncio.get_running_loop().run_in_executor(self._thread, self._load)
            engine, self.description = await loading
            self._batcher = Batcher(engine, self.config, self.metrics, self._thread)
            self._on_ready(self.description)
            await self._batcher.run()
        except Exception as error:
            self.error = error

    async def score(self, documents: Sequence[Document], request: Request, deadline: float) -> list[ScoredDocument]:
        """Return the result of each document, in order.

        Documents that still wait at the deadline (in the event loop's time), or when the client disconnects, are not
        scored.

        Raises:
            HTTPException: 503 if the queue is full, 504 after the deadline, 499 if the client disconnected.
        """
        assert self._batcher is not None
        try:
            return await _while_connected(request, self._batcher.score(documents), deadline)
        except QueueFull as full:
            raise unavailable(f"{full}; try again later", full.retry_after_s) from None
        except TimeoutError:
            raise HTTPException(504, f"not scored within {self.config.timeout_s:g} s; send fewer documents") from None

    @contextlib.asynccontextmanager
    async def request_body(self, request: Request, deadline: float) -> AsyncIterator[bytearray]:
        """Read the body of a request. Until the context ends, its bytes count as held and the request as open.

        Raises:
            HTTPException: 503 if the service is not ready or holds too many bytes, 413 if the body is too large, 408
                if it is not complete at the deadline, 499 if the client disconnected.
        """
        if self.status != "ready":
            raise unavailable(f"the service is {self.status}")
        body = bytearray()
        self.open_requests += 1
        try:
            await self._read(request, body, deadline)
            yield body
        finally:
            self.open_requests -= 1
            self._held_bytes -= len(body)

    async def _read(self, request: Request, body: bytearray, deadline: float) -> None:
        self._check_size(int(request.headers.get("content-length", 0)))
        try:
            async with asyncio.timeout_at(deadline):
                async for part in request.stream():
                    body += part
                    self._held_bytes += len(part)
                    self._check_size(len(body))
        except TimeoutError:
            raise HTTPException(408, f"the request was not complete within {self.config.timeout_s:g} s") from None
        except ClientDisconnect:
            raise HTTPException(CLIENT_GONE, "the client disconnected") from None

    def _check_size(self, size: int) -> None:
        if size > self.config.max_body_bytes:
            raise HTTPException(
                413, f"the body is larger than {self.config.max_body_bytes:,} bytes; send fewer documents"
            )
        if self._held_bytes > self.config.max_held_bytes:
            raise unavailable("too many requests are in progress; try again later")

    def close(self) -> None:
        """Stop the scoring thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)


def unavailable(reason: str, retry_after_s: float = 1) -> HTTPException:
    """A 503 response with a Retry-After header."""
    return HTTPException(503, reason, {"Retry-After": str(math.ceil(retry_after_s))})


async def _while_connected(request: Request, work: Coroutine[Any, Any, Result], deadline: float) -> Result:
    """Return the result of `work`; cancel it if the client disconnects or at the deadline.

    Raises:
        TimeoutError: at the deadline.
        HTTPException: 499 if the client disconnected.
    """
    task, disconnected = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(request))
    remaining = deadline - asyncio.get_running_loop().time()
    try:
        await asyncio.wait({task, disconnected}, timeout=remaining, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if disconnected.done():
            raise HTTPException(CLIENT_GONE, "the client disconnected")
        raise TimeoutError
    finally:
        for pending in (task, disconnected):
            pending.cancel()
        await asyncio.gather(task, disconnected, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
