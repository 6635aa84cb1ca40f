"""robots.txt, as RFC 9309 asks: fetched once a run and host, and respected for every request and redirect."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from yarl import URL

from ml_filter.downstream.fetching.items import Rejected, Response

PRODUCT = "ml_filter"
"""The name that rules for this crawler use."""
MAX_BYTES = 512 * 2**10
"""What is read of a file; RFC 9309 asks for at least 500 KiB."""
_CACHED_S = 24 * 3600.0


class Robots:
    """The rules of each host, fetched when they are first needed.

    Args:
        fetch: gets the response of a URL, and raises Rejected without one.
        max_delay_s: the longest Crawl-delay to wait for.
    """

    def __init__(self, fetch: Callable[[URL], Awaitable[Response]], max_delay_s: float) -> None:
        self._fetch, self._max_delay_s = fetch, max_delay_s
        self._rules: dict[str, tuple[float, Any]] = {}
        self._locks: dict[str, asyncio.Lock] = {}

    async def check(self, url: URL) -> float:
        """The seconds that the host asks to wait between two requests.

        Raises:
            Rejected: the URL may not be fetched, now or at all.
        """
        rules = await self.rules_of(url)
        try:
            is_allowed = rules.can_fetch(str(url), PRODUCT)
            delay, rate = rules.crawl_delay(PRODUCT) or 0.0, rules.request_rate(PRODUCT)
        except (ValueError, RecursionError) as error:
            raise Rejected("robots_unavailable", f"robots.txt cannot be applied: {error}") from error
        if not is_allowed:
            raise Rejected("robots_denied", f"{url.origin()}/robots.txt")
        delay = max(delay, rate.seconds / rate.requests if rate and rate.requests else 0.0)
        if delay > self._max_delay_s:
            raise Rejected("robots_denied", f"its Crawl-delay of {delay:,.0f} s is longer than max_wait_s")
        return delay

    async def rules_of(self, url: URL) -> Any:
        """The rules for the host of a URL.

        Raises:
            Rejected: they cannot be fetched because of the server or the network, so that nothing is allowed for now.
        """
        origin = str(url.origin())
        async with self._locks.setdefault(origin, asyncio.Lock()):
            fetched_at, rules = self._rules.get(origin, (-_CACHED_S, None))
            if time.monotonic() - fetched_at >= _CACHED_S:
                rules = await self._fetched(url.origin() / "robots.txt")
                self._rules[origin] = (time.monotonic(), rules)
        if isinstance(rules, Rejected):
            raise Rejected(rules.reason, rules.detail)
        return rules

    async def _fetched(self, url: URL) -> Any:
        from protego import Protego

        try:
            body = (await self._fetch(url)).body
        except Rejected as problem:
            if problem.reason in ("http_status", "too_many_redirects", "redirect_loop") and problem.detail[:1] != "5":
                body = b""
            elif problem.reason == "private_address":
                return problem
            else:
                # The network, a private address or a 5xx: RFC 9309, 2.3.1.4.
                return Rejected("robots_unavailable", f"{url}: {problem.reason} {problem.detail}".strip())
        text = body.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace")
        return await asyncio.to_thread(Protego.parse, text)
