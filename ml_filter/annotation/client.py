"""One request to one OpenAI-compatible endpoint: its answer, or the reason for having no usable one.

Built on aiohttp because with 1,000 requests in flight the client of the openai library needs five times as long per
request and becomes the bottleneck (benchmarks/annotation_throughput.py).
"""

from __future__ import annotations

import asyncio
import json
import math
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import orjson
from pydantic import SecretStr

from ml_filter.annotation.responses import RequestFailed, storable
from ml_filter.errors import EndpointError

_TEMPORARY_STATUS = {408, 409, 425}
_TOO_LONG = ("context length", "context size", "context window", "maximum context", "model length", "too long")
_USER_IN_URL = re.compile(r"(?<=://)[^/\s]+(?=@)")
_MAX_BYTES = 32 * 2**20
"""Largest response. 300 log-probabilities for each of 1,000 tokens take about 15 MB."""


@dataclass(frozen=True)
class Endpoint:
    """Address, model name and key of an endpoint, and its most parallel requests if that is known."""

    base_url: str
    model: str
    api_key: SecretStr
    max_concurrency: int | None = None
    key_name: str | None = None
    """Environment variable that holds the key; None: ML_FILTER_API_KEY."""

    def url(self, path: str) -> str:
        """URL of an API path such as `chat/completions`."""
        return f"{self.base_url.rstrip('/')}/{path}"

    def server_url(self, path: str) -> str:
        """URL of a path outside the API, such as vLLM's `tokenize`."""
        parts = urlsplit(self.base_url)
        return f"{parts.scheme}://{parts.netloc}/{path}"

    @cached_property
    def proxy(self) -> str | None:
        """The proxy for this URL from the environment (`HTTPS_PROXY`, `NO_PROXY`, ...)."""
        # Not aiohttp's trust_env: it also reads ~/.netrc, in a thread, for every request.
        parts = urlsplit(self.base_url)
        return None if proxy_bypass(parts.netloc) else getproxies().get(parts.scheme)

    def public(self, detail: str) -> str:
        """A server's message, fit for logs and files: at most 1,000 characters, without the key, which some servers
        repeat in errors, and without the user and password of a proxy, which aiohttp includes in errors."""
        key = self.api_key.get_secret_value()
        detail = _USER_IN_URL.sub("***", detail)
        return storable(detail.replace(key, "***") if len(key) >= 8 else detail)[:1000]


class Client:
    """A pool of connections. `timeout_s` limits the complete request, so it also ends an answer that trickles in."""

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout)

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()

    async def post(self, endpoint: Endpoint, url: str, body: dict[str, Any]) -> dict[str, Any]:
        """Send a JSON body and return the JSON object of the response.

        Raises:
            RequestFailed: `timeout`, `connection_error`, `rate_limited`, `server_error`, `malformed_answer`,
                `context_too_long` or `bad_request`.
            EndpointError: no request can succeed, because the key, the path or the model name is rejected.
        """
        return await self._send("POST", endpoint, url, orjson.dumps(body))

    async def get(self, endpoint: Endpoint, url: str) -> dict[str, Any]:
        """The JSON object at a URL; raises the same errors as `post`."""
        return await self._send("GET", endpoint, url, None)

    async def _send(self, method: str, endpoint: Endpoint, url: str, data: bytes | None) -> dict[str, Any]:
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {endpoint.api_key.get_secret_value()}"}
        try:
            async with self._session.request(
                method, url, data=data, headers=headers, proxy=endpoint.proxy, allow_redirects=False
            ) as response:
                content = await _content(response)
                status, sent = response.status, response.headers
        except TimeoutError as error:
            raise RequestFailed("timeout", f"no answer within {self.timeout_s:g} s", may_cost=True) from error
        except (ValueError, aiohttp.NonHttpUrlClientError) as error:  # a password in the URL is a ValueError
            host = urlsplit(endpoint.base_url).netloc.rpartition("@")[2]
            raise EndpointError(
                f"the endpoint {host or endpoint.base_url!r} is not a URL like http://host:port/v1 (keys go into "
                "ML_FILTER_API_KEY); check --endpoint (ML_FILTER_ENDPOINT)"
            ) from error
        except (aiohttp.ClientError, OSError) as error:
            detail = endpoint.public(f"{type(error).__name__}: {error}")
            was_sent = not isinstance(error, aiohttp.ClientConnectorError)
            raise RequestFailed("connection_error", detail, may_cost=was_sent) from error
        if 300 <= status < 400:
            raise EndpointError(
                f"{endpoint.base_url} redirects to {endpoint.public(sent.get('Location', 'nowhere'))}; set --endpoint "
                "(ML_FILTER_ENDPOINT) to the final URL"
            )
        if status >= 400:
            raise failure_of(endpoint, status, content, sent.get("Retry-After"))
        try:
            answer = _loads(content)
        except (ValueError, RecursionError) as error:
            raise RequestFailed("malformed_answer", endpoint.public(f"not JSON: {error}"), may_cost=True) from error
        if not isinstance(answer, dict):
            detail = f"the answer is a {type(answer).__name__}, not an object"
            raise RequestFailed("malformed_answer", detail, may_cost=True)
        return answer


async def _content(response: aiohttp.ClientResponse) -> bytes:
    try:
        await response.content.readexactly(_MAX_BYTES + 1)
    except asyncio.IncompleteReadError as complete:
        return complete.partial
    raise RequestFailed("malformed_answer", f"the answer is longer than {_MAX_BYTES:,} bytes", may_cost=True)


def failure_of(endpoint: Endpoint, status: int, content: bytes, retry_after: str | None) -> Exception:
    """The error for a response with status 400 or above: RequestFailed, or EndpointError if no request can succeed."""
    message = endpoint.public(_message(content)) or f"status {status} without a message"
    if status in (401, 403):
        return EndpointError(
            f"{endpoint.base_url} rejected the key ({status}); set {endpoint.key_name or 'ML_FILTER_API_KEY'}"
        )
    if status == 404:
        return EndpointError(
            f"{endpoint.base_url} does not know the model {endpoint.model!r} or the path; check --model "
            f"(ML_FILTER_MODEL) and --endpoint (ML_FILTER_ENDPOINT): {message}"
        )
    if status == 429:
        return RequestFailed("rate_limited", message, retry_after_s=_seconds(retry_after))
    if status >= 500 or status in _TEMPORARY_STATUS:
        return RequestFailed("server_error", f"{status}: {message}", retry_after_s=_seconds(retry_after))
    too_long = any(words in message.lower() for words in _TOO_LONG)
    return RequestFailed("context_too_long" if too_long else "bad_request", message, refused=True)


def _message(content: bytes) -> str:
    text = content.decode("utf-8", "replace")
    try:
        error = json.loads(text)
        error = error.get("error", error)
        return str(error.get("message", error) if isinstance(error, dict) else error)
    except (ValueError, AttributeError, RecursionError):
        return text


def _seconds(retry_after: str | None) -> float | None:
    """The seconds that a `Retry-After` header asks for; it may hold seconds or a date."""
    try:
        seconds = float(retry_after or "nan")
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(str(retry_after)) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return None
    return max(seconds, 0.0) if math.isfinite(seconds) else None


def _loads(content: bytes) -> Any:
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError:
        return json.loads(content)  # more tolerant: accepts infinities and lone surrogates, which some servers write
