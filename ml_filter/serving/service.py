"""A head that is being served: loaded in a thread of its own, asked through a batcher, and stopped without loss."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, Literal, TypeVar

from fastapi import HTTPException
from starlette.requests import ClientDisconnect, Request

from ml_filter.heads.engine import Engine
from ml_filter.serving.batcher import Batcher, QueueFull
from ml_filter.serving.config import ServeConfig
from ml_filter.serving.describe import HeadDescription
from ml_filter.serving.documents import Outcome
from ml_filter.serving.metrics import Metrics

CLIENT_GONE = 499
"""The code, made common by nginx, under which requests are counted whose client went away. Nobody receives it."""

Result = TypeVar("Result")


class Service:
    """The state of a service. `status` is `loading`, `ready` or `stopping`; only a ready one takes documents.

    Args:
        load: gives the engine and its description; called once, in the thread that scores.
        config: limits and batching.
        say_ready: called when the head is loaded.
    """

    def __init__(
        self,
        load: Callable[[], tuple[Engine, HeadDescription]],
        config: ServeConfig,
        say_ready: Callable[[HeadDescription], None] = lambda description: None,
    ) -> None:
        self.config, self.metrics = config, Metrics()
        self.error: Exception | None = None
        self.stopping = False
        self.open_requests = 0
        self.description: HeadDescription | None = None
        self._load, self._say_ready = load, say_ready
        self._thread = ThreadPoolExecutor(1, "scoring")
        self._batcher: Batcher | None = None
        self._held_bytes = 0
        self.metrics.held_bytes.set_function(lambda: self._held_bytes)
        self.metrics.ready.set_function(lambda: self.status == "ready")

    @property
    def status(self) -> Literal["loading", "ready", "stopping"]:
        """Whether documents are taken."""
        if self.stopping or self.error is not None:
            return "stopping"
        return "loading" if self._batcher is None else "ready"

    async def run(self) -> None:
        """Load the head and score, until cancelled. An error ends up in `error`."""
        try:
            loading = asyncio.get_running_loop().run_in_executor(self._thread, self._load)
            engine, self.description = await loading
            self._batcher = Batcher(engine, self.config, self.metrics, self._thread)
            self._say_ready(self.description)
            await self._batcher.run()
        except Exception as error:
            self.error = error

    async def score(self, texts: Sequence[str], request: Request, until: float) -> list[Outcome]:
        """What became of each text, in their order.

        Args:
            texts: what is scored.
            request: for whom; when its client goes away, what waits is not scored.
            until: time of the event loop, after which what waits is not scored.

        Raises:
            HTTPException: 503 there is no room in the queue, 504 it took too long, 499 the client went away.
        """
        assert self._batcher is not None
        try:
            return await _while_there(request, self._batcher.score(texts), until)
        except QueueFull as full:
            raise unavailable(f"{full}; try again later", full.retry_after_s) from None
        except TimeoutError:
            raise HTTPException(504, f"not scored within {self.config.timeout_s:g} s; send less at once") from None

    @asynccontextmanager
    async def request_body(self, request: Request, until: float) -> AsyncIterator[bytearray]:
        """The body of a request that is taken. Its bytes count as held, and the request as open, until the end.

        Raises:
            HTTPException: 503 not ready, or too many bytes are held, 413 it is too large, 408 it came too slowly, 499
                the client went away.
        """
        if self.status != "ready":
            raise unavailable(f"the service is {self.status}")
        body = bytearray()
        self.open_requests += 1
        try:
            await self._read(request, body, until)
            yield body
        finally:
            self.open_requests -= 1
            self._held_bytes -= len(body)

    async def _read(self, request: Request, body: bytearray, until: float) -> None:
        self._check_size(int(request.headers.get("content-length", 0)))
        try:
            async with asyncio.timeout_at(until):
                async for part in request.stream():
                    body += part
                    self._held_bytes += len(part)
                    self._check_size(len(body))
        except TimeoutError:
            raise HTTPException(408, f"the request was not there within {self.config.timeout_s:g} s") from None
        except ClientDisconnect:
            raise HTTPException(CLIENT_GONE, "the client went away") from None

    def _check_size(self, size: int) -> None:
        if size > self.config.max_body_bytes:
            raise HTTPException(413, f"the body is larger than {self.config.max_body_bytes:,} bytes; send less at once")
        if self._held_bytes > self.config.max_held_bytes:
            raise unavailable("too many requests are being answered; try again later")

    def close(self) -> None:
        """Let go of the thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)


def unavailable(reason: str, retry_after_s: float = 1) -> HTTPException:
    """503, and when to try again."""
    return HTTPException(503, reason, {"Retry-After": str(math.ceil(retry_after_s))})


async def _while_there(request: Request, work: Coroutine[Any, Any, Result], until: float) -> Result:
    """The result of `work`, which is cancelled when the client goes away or time is up.

    Raises:
        TimeoutError: time is up.
        HTTPException: 499, the client went away.
    """
    working, gone = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(request))
    left = until - asyncio.get_running_loop().time()
    try:
        await asyncio.wait({working, gone}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        if gone.done():
            raise HTTPException(CLIENT_GONE, "the client went away")
        raise TimeoutError
    finally:
        for task in (working, gone):
            task.cancel()
        await asyncio.gather(working, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
