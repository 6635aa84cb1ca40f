"""Web pages that scripts make, opened in Chromium by Playwright.

The navigation goes through robots.txt, the pace of its host and the budget, as any other request; its redirects are
checked too. What the page loads by itself is limited to public addresses and to scripts, styles and data: no images,
fonts or media. Playwright resolves names by itself, so a name that resolves to another address the second time is not
caught; use a proxy or a network without private services if that matters.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
from typing import Any

from yarl import URL

from ml_filter.annotation.client import proxy_for
from ml_filter.downstream.fetching.addresses import BLOCKED, is_public, is_public_name
from ml_filter.downstream.fetching.client import Client, page_url, user_agent
from ml_filter.downstream.fetching.config import FetchConfig
from ml_filter.downstream.fetching.items import Rejected, Response
from ml_filter.errors import ConfigError

_BINARIES = ("chromium", "chromium-browser", "google-chrome")
_NOT_LOADED = ("image", "media", "font")


class Browser:
    """Chromium, started once. Use it as an asynchronous context manager.

    Raises:
        ConfigError: Playwright or Chromium is not installed.
    """

    def __init__(self, config: FetchConfig, client: Client) -> None:
        self._config, self._client = config, client

    async def __aenter__(self) -> Browser:
        try:
            from playwright.async_api import Error, async_playwright
        except ImportError:
            raise ConfigError(
                "browser needs Playwright: pip install playwright, then playwright install chromium"
            ) from None
        self._playwright = await async_playwright().start()
        proxy = proxy_for("https://example.org/")
        try:
            self._chromium: Any = await self._playwright.chromium.launch(
                executable_path=next(filter(None, map(shutil.which, _BINARIES)), None),
                chromium_sandbox=os.geteuid() != 0,  # as root, its sandbox cannot be used
                proxy={"server": proxy} if proxy else None,
            )
        except Error as error:
            await self._playwright.stop()
            reason = str(error).strip().partition("\n")[0]
            raise ConfigError(f"browser needs Chromium ({reason}); run playwright install chromium") from error
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._chromium.close()
        await self._playwright.stop()

    async def get(self, text: str) -> Response:
        """The page at a URL as its scripts have made it; errors as of `Client.get`."""
        from playwright.async_api import Error

        url = page_url(text)
        delay_s = max(self._config.delay_s, await self._client.robots.check(url))
        async with self._client.gate(url).turn(delay_s):
            self._client.meter.requests += 1
            context = await self._chromium.new_context(
                user_agent=user_agent(self._config.contact), accept_downloads=False, service_workers="block"
            )
            try:
                return await asyncio.wait_for(self._open(context, url), self._config.timeout_s)
            except TimeoutError as error:
                raise Rejected("timeout", f"no page within {self._config.timeout_s:g} s") from error
            except Error as error:
                reason = "private_address" if BLOCKED in str(error) else "connection_error"
                raise Rejected(reason, str(error).partition("\n")[0][:300]) from error
            finally:
                await context.close()

    async def _open(self, context: Any, url: URL) -> Response:
        refused: list[Rejected] = []

        async def route(route: Any) -> None:
            request = route.request
            try:
                target = page_url(request.url)
                if not self._config.allow_local and not await _is_public(target.host or ""):
                    raise Rejected("private_address", f"{target.host}: {BLOCKED}")
                if request.is_navigation_request() and target != url:
                    await self._client.robots.check(target)
            except Rejected as problem:
                if request.is_navigation_request() and request.frame.parent_frame is None:
                    refused.append(problem)
                await route.abort("blockedbyclient")
                return
            if request.resource_type in _NOT_LOADED:
                await route.abort("blockedbyclient")
            else:
                await route.continue_()

        await context.route("**/*", route)
        page = await context.new_page()
        try:
            answer = await page.goto(str(url), wait_until="load")
            await page.wait_for_load_state("networkidle")
        except Exception:
            if refused:
                raise refused[0] from None
            raise
        if answer is None or not 200 <= answer.status < 300:
            raise Rejected("http_status", f"{answer.status} {answer.status_text}".strip() if answer else "")
        final = page_url(page.url)
        if final.origin() != url.origin():
            await self._client.robots.check(final)
            if not self._config.allow_local and not await _is_public(final.host or ""):
                raise Rejected("private_address", f"{final.host}: {BLOCKED}")
        body = (await page.content()).encode("utf-8", "replace")
        self._client.meter.bytes += len(body)
        if len(body) > self._config.max_response_bytes:
            raise Rejected("too_large", f"more than {self._config.max_response_bytes:,} bytes")
        return Response(str(final), body, {"content-type": "text/html; charset=utf-8"})


async def _is_public(host: str) -> bool:
    """Whether all addresses of a host are public; through a proxy, which resolves names, the host itself is checked."""
    if not is_public_name(host):
        return False
    if proxy_for(f"https://{host}/"):
        return True
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return True  # the browser reports that it does not resolve
    return all(is_public(str(entry[4][0])) for entry in found)
