"""A running service: loads the head in a thread, scores through a batcher, stops without losing requests."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, Literal, TypeVar

from fastapi import HTTPException
from starlette.requests import ClientDisconnect, Request

from ml_filter.heads.kinds import Head
from ml_filter.serving.batcher import Batcher, QueueFull
from ml_filter.serving.config import ServeConfig
from ml_filter.serving.documents import Document, HeadDescription, ScoredDocument
from ml_filter.serving.metrics import Metrics

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

    @asynccontextmanager
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
