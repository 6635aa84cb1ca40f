"""A real HTTP server on loopback that serves a site, well or as badly as a test asks."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Site:
    """`pages` maps a path (with its query, or without) to a body, a response or a coroutine that makes one.

    Attributes:
        asked: requests by path and query, in order.
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self.pages: dict[str, Any] = {}
        self.asked: list[str] = []
        self.times: list[float] = []
        self.headers: list[dict[str, str]] = []
        self.over = asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        self._ready.wait(10)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._start())
        self._ready.set()
        self._loop.run_forever()
        self.over.set()
        self._loop.run_until_complete(self._runner.cleanup())
        self._loop.close()

    async def _start(self) -> None:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        listener = web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=self._tls)
        await listener.start()
        self.port = listener._server.sockets[0].getsockname()[1]

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request.path_qs)
        self.times.append(self._loop.time())
        self.headers.append(dict(request.headers))
        page = self.pages.get(request.path_qs, self.pages.get(request.path))
        if page is None:
            return web.Response(status=404)
        if callable(page):
            page = await page(request)
        if isinstance(page, web.StreamResponse):
            return page
        if isinstance(page, tuple):
            status, headers, body = page
            return web.Response(status=status, headers=headers, body=body)
        body = page if isinstance(page, bytes) else page.encode()
        return web.Response(body=body, headers={"Content-Type": kind_of(request.path, body)})

    def url(self, path: str = "/") -> str:
        return f"http{'s' if self._tls else ''}://127.0.0.1:{self.port}{path}"

    @property
    def counts(self) -> Counter[str]:
        """How often each path was asked for, without robots.txt."""
        return Counter(path for path in self.asked if path != "/robots.txt")

    def forget(self) -> None:
        self.asked.clear()
        self.times.clear()
        self.headers.clear()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)


def kind_of(path: str, body: bytes) -> str:
    """The media type of a body."""
    if body.startswith(b"%PDF"):
        return "application/pdf"
    if path.endswith(".xml") or body.startswith(b"<?xml"):
        return "application/xml"
    return "text/plain" if path.endswith(".txt") else "text/html; charset=utf-8"


PROSE = "The heart pumps blood through the body, and the lungs bring oxygen into it with every breath we take. "


def article(name: str, *links: str, title: str = "") -> str:
    """A page with a text that every extractor finds."""
    anchors = "".join(f'<a href="{link}">{link}</a> ' for link in links)
    head = f"<head><title>{title or name}</title></head>"
    return (
        f'<html lang="en">{head}<body><nav>{anchors}</nav><article><p>{name}. {PROSE * 4}</p></article></body></html>'
    )


def with_etag(body: str, etag: str = '"1"') -> Answer:
    """A page that answers a conditional request with 304."""

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.headers.get("If-None-Match") == etag:
            return web.Response(status=304, headers={"ETag": etag})
        return web.Response(text=body, content_type="text/html", headers={"ETag": etag})

    return answer


def endless(site: Site, piece: bytes = b"<p>more</p>" * 5000, pause_s: float = 0.0) -> Answer:
    """A body that never ends; with a pause it trickles."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/html"})
        await response.prepare(request)
        try:
            while not site.over.is_set():
                await response.write(piece)
                if pause_s:
                    await asyncio.sleep(pause_s)
        except (ConnectionError, asyncio.CancelledError):
            pass
        return response

    return answer


def cut_off(body: bytes, after: int) -> Answer:
    """A body whose connection is lost after some of its bytes."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/html", "Content-Length": str(len(body))})
        await response.prepare(request)
        await response.write(body[:after])
        assert request.transport is not None
        request.transport.close()
        return response

    return answer
