"""One request: polite, bounded in size, time and redirects, and retried after a transient failure."""

from __future__ import annotations

import ssl
import time
from collections.abc import Mapping
from typing import Any

import aiohttp
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt, wait_random_exponential
from yarl import URL

from ml_filter import __version__
from ml_filter.annotation.client import proxy_for, retry_seconds
from ml_filter.annotation.connection import trusted_certificates
from ml_filter.config import Settings
from ml_filter.downstream.fetching.addresses import BLOCKED, guarded_socket, is_public_name
from ml_filter.downstream.fetching.config import FetchConfig
from ml_filter.downstream.fetching.gates import Gate, Gates, Meter
from ml_filter.downstream.fetching.items import Postponed, Rejected, Response
from ml_filter.downstream.fetching.robots import MAX_BYTES, PRODUCT, Robots

_REDIRECTS = (301, 302, 303, 307, 308)
_PASSING = (408, 425, 429, 500, 502, 503, 504)
_ASKS_TO_WAIT = (429, 503)
_ACCEPT = "text/html,application/xhtml+xml,application/pdf,application/xml;q=0.9,text/plain;q=0.9,*/*;q=0.5"
_BLOCK = 2**16
_MAX_URL = 4096


class _Passing(Rejected):
    """A failure that may pass, after `retry_after` seconds if the server says so."""

    def __init__(self, reason: str, detail: str, *, asks_to_wait: bool = False, retry_after: float | None = None):
        super().__init__(reason, detail)
        self.asks_to_wait, self.retry_after = asks_to_wait, retry_after


class NotModified(Exception):
    """The content is what the validators in the request stand for."""


def user_agent(contact: str) -> str:
    """How the crawler introduces itself."""
    return f"{PRODUCT}/{__version__} (+{contact})"


def page_url(text: str, base: URL | None = None) -> URL:
    """A URL in its usual form, without a fragment.

    Raises:
        Rejected: it is not one of a web page, or holds a password.
    """
    if not text.strip():
        raise Rejected("bad_url", "the address is empty")
    try:
        url = base.join(URL(text.strip())) if base is not None else URL(text.strip())
        url = url.with_fragment(None)
        usable = url.scheme in ("http", "https") and url.host and url.user is None and url.password is None
        is_short = len(str(url)) <= _MAX_URL and url.port is not None
    except (ValueError, TypeError, UnicodeError) as error:
        raise Rejected("bad_url", f"{text[:200]!r}: {error}") from error
    if not usable or not is_short:
        raise Rejected("bad_url", repr(text[:200]))
    return url if url.path else url.with_path("/")


class Client:
    """Fetches URLs. Use it as an asynchronous context manager."""

    def __init__(self, config: FetchConfig, meter: Meter, settings: Settings | None = None) -> None:
        self._config, self.meter = config, meter
        self._tls: ssl.SSLContext = trusted_certificates((settings or Settings()).ca_bundle)
        self._gates = Gates(meter, config.max_concurrency)
        self.robots = Robots(self._get_robots, config.max_wait_s)

    async def __aenter__(self) -> Client:
        agent = {"User-Agent": user_agent(self._config.contact), "Accept-Encoding": "gzip, deflate, br"}
        wait = self._config.timeout_s
        timeout = aiohttp.ClientTimeout(total=wait, sock_connect=min(wait, 20))
        guard: Any = None if self._config.allow_local else guarded_socket

        def session(factory: Any) -> aiohttp.ClientSession:
            connector = aiohttp.TCPConnector(limit=0, limit_per_host=0, socket_factory=factory)
            return aiohttp.ClientSession(
                connector=connector, timeout=timeout, headers=agent, cookie_jar=aiohttp.DummyCookieJar()
            )

        # The proxy itself may have a private address.
        self._direct, self._proxied = session(guard), session(None)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._direct.close()
        await self._proxied.close()

    def gate(self, url: URL) -> Gate:
        """The turns of the host of a URL."""
        return self._gates.of(url.host_port_subcomponent or "")

    async def get(
        self, text: str, *, headers: Mapping[str, str] | None = None, is_api: bool = False, delay_s: float = 0
    ) -> Response:
        """The response of a URL, after redirects.

        Args:
            headers: sent to the host of the URL alone, since they may hold a key or validators.
            is_api: robots.txt, which is for crawlers, does not apply.
            delay_s: least seconds until the next request to the host.

        Raises:
            Rejected: no response, and retrying in this run would not help.
            NotModified: the content has not changed since the validators in the headers were received.
            Postponed: the host asks to wait for longer than the run does.
            BudgetSpent: nothing more may be requested.
        """
        url = page_url(text)
        return await self._follow(url, headers or {}, is_api, delay_s)

    async def resource(self, text: str, headers: Mapping[str, str]) -> Response:
        """What a page loads, without a pause between: a browser does not make one either. Errors as of `get`."""
        url = page_url(text)
        for _ in range(self._config.max_redirects + 1):
            self.meter.check()
            status, found_headers, body = await self._exchange(url, headers, None)
            if status not in _REDIRECTS or "location" not in found_headers:
                return Response(str(url), body, found_headers)
            url = page_url(found_headers["location"], url)
        raise Rejected("too_many_redirects", f"more than {self._config.max_redirects}")

    async def _get_robots(self, url: URL) -> Response:
        return await self._follow(url, {"Accept": "text/plain"}, True, 0, cut_at=MAX_BYTES)

    async def _follow(
        self, url: URL, headers: Mapping[str, str], is_api: bool, delay_s: float, cut_at: int | None = None
    ) -> Response:
        seen = {url}
        first = url.origin()
        while True:
            host_delay = 0.0 if is_api else await self.robots.check(url)
            delay = max(self._config.delay_s, delay_s, host_delay)
            own = headers if url.origin() == first else {}
            status, found_headers, body = await self._repeat(url, own, delay, cut_at)
            if status == 304 and own:
                raise NotModified
            if status not in _REDIRECTS or "location" not in found_headers:
                return Response(str(url), body, found_headers)
            url = page_url(found_headers["location"], url)
            if url in seen:
                raise Rejected("redirect_loop", f"back to {url.with_query(None)}")
            seen.add(url)
            if len(seen) > self._config.max_redirects + 1:
                raise Rejected("too_many_redirects", f"more than {self._config.max_redirects}")

    async def _repeat(
        self, url: URL, headers: Mapping[str, str], delay_s: float, cut_at: int | None
    ) -> tuple[int, dict[str, str], bytes]:
        gate = self.gate(url)
        backoff = wait_random_exponential(multiplier=self._config.backoff_s, max=self._config.max_wait_s)

        def wait(state: RetryCallState) -> float:
            """The pause before the next attempt, in which nobody else asks the host either."""
            problem = state.outcome.exception() if state.outcome else None
            seconds = max(backoff(state), getattr(problem, "retry_after", None) or 0.0)
            gate.pause(seconds)
            return 0.0  # the gate waits

        retrying = AsyncRetrying(
            stop=stop_after_attempt(self._config.retries + 1),
            retry=retry_if_exception_type(_Passing),
            wait=wait,
            reraise=True,
        )
        try:
            async for attempt in retrying:
                with attempt:
                    async with gate.turn(delay_s):
                        return await self._exchange(url, headers, cut_at)
        except _Passing as problem:
            if problem.asks_to_wait:
                raise Postponed(url.host or "", problem.detail) from problem
            raise Rejected(problem.reason, problem.detail) from problem
        raise AssertionError("unreachable: the last attempt raises")

    async def _exchange(
        self, url: URL, headers: Mapping[str, str], cut_at: int | None
    ) -> tuple[int, dict[str, str], bytes]:
        self.meter.requests += 1
        proxy = proxy_for(str(url))
        if proxy and not self._config.allow_local and not is_public_name(url.host or ""):
            raise Rejected("private_address", f"{url.host}: {BLOCKED}")
        session = self._proxied if proxy else self._direct
        started = time.monotonic()
        has_begun = False
        try:
            async with session.get(
                url, headers={"Accept": _ACCEPT, **headers}, allow_redirects=False, proxy=proxy, ssl=self._tls
            ) as response:
                has_begun = True
                found = {name.lower(): value for name, value in response.headers.items()}
                if response.status in _REDIRECTS or response.status == 304:
                    return response.status, found, b""
                _check_status(response, found, self._config.max_wait_s)
                return response.status, found, await self._body(response, cut_at)
        except TimeoutError as error:
            detail = f"no complete response within {time.monotonic() - started:,.1f} s"
            raise (Rejected if has_begun else _Passing)("timeout", detail) from error
        except aiohttp.ClientConnectorCertificateError as error:
            detail = getattr(error.certificate_error, "verify_message", "") or "not valid"
            raise Rejected("bad_certificate", f"{detail}; ML_FILTER_CA_BUNDLE names further authorities") from error
        except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError) as error:
            raise Rejected("bad_url", str(error)) from error
        except aiohttp.ClientResponseError as error:
            raise Rejected("bad_response", f"{error.status} {error.message}"[:300]) from error
        except (aiohttp.ClientError, OSError) as error:
            if BLOCKED in f"{error} {getattr(error, 'os_error', '')}":
                raise Rejected("private_address", f"{url.host}: {BLOCKED}") from error
            reason = "truncated" if has_begun else "connection_error"
            raise _Passing(reason, f"{type(error).__name__}: {str(error)[:300]}".partition(" ssl:")[0]) from error
        except ValueError as error:
            raise Rejected("bad_response", f"{type(error).__name__}: {error}"[:300]) from error

    async def _body(self, response: aiohttp.ClientResponse, cut_at: int | None) -> bytes:
        limit = cut_at or self._config.max_response_bytes
        declared = response.content_length or 0
        if declared > limit and cut_at is None:
            response.close()
            raise Rejected("too_large", f"{declared:,} bytes, the limit max_response_bytes is {limit:,}")
        body = bytearray()
        async for piece in response.content.iter_chunked(_BLOCK):
            self.meter.bytes += len(piece)
            body += piece
            if len(body) > limit:
                response.close()  # the rest is not read
                if cut_at is None:
                    raise Rejected("too_large", f"more than {limit:,} bytes, the limit max_response_bytes")
                return bytes(body[:limit])
        return bytes(body)


def _check_status(response: aiohttp.ClientResponse, headers: Mapping[str, str], max_wait_s: float) -> None:
    """Raise Rejected or Postponed if a response is not one of success."""
    status = response.status
    if 200 <= status < 300:
        return
    detail = f"{status} {response.reason or ''}".strip()
    seconds = retry_seconds(headers.get("retry-after"))
    if status == 403 and headers.get("x-ratelimit-remaining") == "0":  # how GitHub's API says 429
        reset = headers.get("x-ratelimit-reset", "")
        seconds = max(float(reset) - time.time(), 0.0) if reset.isdecimal() else 60.0
        status = 429
    if status not in _PASSING:
        raise Rejected("http_status", detail)
    asks_to_wait = status == 429 or (status in _ASKS_TO_WAIT and seconds is not None)
    if asks_to_wait and (seconds or 0) > max_wait_s:
        raise Postponed(response.url.host or "", f"{detail}, Retry-After {seconds:,.0f} s")
    raise _Passing("http_status", detail, asks_to_wait=asks_to_wait, retry_after=seconds if asks_to_wait else None)
