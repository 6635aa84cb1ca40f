"""Web pages that scripts make, in Chromium by Playwright.

Chromium itself is given no network: the page and all that it loads come through the client, so that limits, private
addresses and, for pages, robots.txt apply to redirects too. Scripts, styles and data are loaded; images, fonts, media,
frames and anything but GET are not.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from contextlib import suppress
from typing import Any

from ml_filter.downstream.fetching.client import Client, page_url, user_agent
from ml_filter.downstream.fetching.config import FetchConfig
from ml_filter.downstream.fetching.items import BudgetSpent, Postponed, Rejected, Response
from ml_filter.errors import ConfigError

_BINARIES = ("chromium", "chromium-browser", "google-chrome")
_NOT_LOADED = ("image", "media", "font", "websocket", "eventsource", "manifest", "ping")
_NOT_PASSED_ON = ("content-encoding", "content-length", "transfer-encoding", "connection", "set-cookie")
_NOWHERE = "http://127.0.0.1:9"
"""A proxy that nobody listens at: what is not answered here goes nowhere."""


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
        try:
            self._chromium: Any = await self._playwright.chromium.launch(
                executable_path=next(filter(None, map(shutil.which, _BINARIES)), None),
                chromium_sandbox=os.geteuid() != 0,  # as root, its sandbox cannot be used
                proxy={"server": _NOWHERE, "bypass": "<-loopback>"},
            )
        except Error as error:
            await self._playwright.stop()
            reason = str(error).strip().partition("\n")[0]
            raise ConfigError(f"browser needs Chromium ({reason}); run playwright install chromium") from error
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._chromium.close()
        await self._playwright.stop()

    async def render(self, response: Response) -> Response:
        """The page of a response as its scripts have made it.

        Raises:
            Rejected: it cannot be opened, takes too long or is too large.
        """
        from playwright.async_api import Error

        context = await self._chromium.new_context(
            user_agent=user_agent(self._config.contact), accept_downloads=False, service_workers="block"
        )
        try:
            return await asyncio.wait_for(self._open(context, response), self._config.timeout_s)
        except TimeoutError as error:
            raise Rejected("timeout", f"the page was not ready within {self._config.timeout_s:g} s") from error
        except Error as error:
            raise Rejected("browser_failed", str(error).partition("\n")[0][:300]) from error
        finally:
            await context.close()

    async def _open(self, context: Any, response: Response) -> Response:
        from playwright.async_api import TimeoutError as PlaywrightTimeout

        async def answer(route: Any) -> None:
            request = route.request
            is_page = request.is_navigation_request()
            try:
                if request.method != "GET" or request.resource_type in _NOT_LOADED:
                    raise Rejected("not_loaded")
                if is_page and request.frame.parent_frame is not None:
                    raise Rejected("not_loaded")
                if page_url(request.url) == page_url(response.url) and is_page:
                    found = response
                elif is_page:
                    found = await self._client.get(request.url)
                else:
                    found = await self._client.resource(request.url, {"Accept": request.headers.get("accept", "*/*")})
                headers = {name: value for name, value in found.headers.items() if name not in _NOT_PASSED_ON}
                await route.fulfill(status=200, headers=headers, body=found.body)
            except (Rejected, Postponed, BudgetSpent):
                await route.abort("blockedbyclient")

        await context.route("**/*", answer)
        page = await context.new_page()
        await page.goto(response.url, wait_until="load", timeout=0)
        with suppress(PlaywrightTimeout):  # some pages ask for news for ever
            await page.wait_for_load_state("networkidle", timeout=500 * self._config.timeout_s)
        url = str(page_url(page.url))
        body = (await page.content()).encode("utf-8", "replace")
        await context.unroute_all(behavior="ignoreErrors")
        if len(body) > self._config.max_response_bytes:
            raise Rejected("too_large", f"a page of {len(body):,} bytes")
        return Response(url, body, {**response.headers, "content-type": "text/html; charset=utf-8"})
