"""One request to one OpenAI-compatible endpoint: its answer, or the reason for having no usable one.

Built on aiohttp because with 1,000 requests in flight the client of the openai library needs five times as long per
request and becomes the bottleneck (benchmarks/annotation_throughput.py).
"""

from __future__ import annotations

import asyncio
import math
import os
import re
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import orjson
from pydantic import SecretStr

from ml_filter.annotation.failures import FORBIDDEN, OUT_OF_CREDIT, RequestFailed
from ml_filter.annotation.responses import Answer, read_answer, read_body, read_part, storable
from ml_filter.errors import EndpointError

_USER_IN_URL = re.compile(r"(?<=://)[^/\s]+(?=@)")
_MAX_BYTES = 32 * 2**20
"""Largest response. 300 log-probabilities for each of 1,000 tokens take about 15 MB."""
_SSL_CONTEXT = re.compile(r" ssl:<[^>]*>")
"""What aiohttp writes into its messages about a connection: the address of an object in memory."""
_NO_TLS = {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG"}
"""What OpenSSL says if the server speaks plain HTTP."""
_UNKNOWN_AUTHORITY = (
    "is not signed by a known authority: it is self-signed, or a company's proxy has replaced it. Set "
    "ML_FILTER_CA_BUNDLE, or SSL_CERT_FILE, to a PEM file with the certificate of the authority"
)
# By the codes of OpenSSL, see X509_STORE_CTX_get_error.
_CERTIFICATE_PROBLEMS = {
    9: "is not valid yet; check the clock of this machine and of the server",
    10: "has expired; the server needs a new one",
    **dict.fromkeys((2, 18, 19, 20, 21), _UNKNOWN_AUTHORITY),
    62: "is for another host name; use the name in the certificate in --endpoint (ML_FILTER_ENDPOINT)",
    64: "is for another address; use the name in the certificate in --endpoint (ML_FILTER_ENDPOINT)",
}
_PROXY_ADVICE = "check HTTPS_PROXY or HTTP_PROXY, or exclude the host with NO_PROXY"

T = TypeVar("T")


def proxy_for(url: str) -> str | None:
    """The proxy for a URL from the environment (`HTTPS_PROXY`, `ALL_PROXY`, `NO_PROXY`, ...).

    Raises:
        EndpointError: it is not a proxy for HTTP.
    """
    # Not aiohttp's trust_env: it also reads ~/.netrc, in a thread, for every request.
    parts, proxies = urlsplit(url), getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or proxy_bypass(parts.netloc):
        return None
    proxy = proxy if "://" in proxy else f"http://{proxy}"
    if not proxy.startswith(("http://", "https://")):
        masked = _USER_IN_URL.sub("***", proxy)
        raise EndpointError(f"the proxy {masked} is not of the form http://host:port; {_PROXY_ADVICE}")
    return proxy


@dataclass(frozen=True)
class Endpoint:
    """Address, model name and key of an endpoint, and its most parallel requests if that is known."""

    base_url: str
    model: str
    api_key: SecretStr
    max_concurrency: int | None = None
    key_name: str = "ML_FILTER_API_KEY"
    """Environment variable that holds the key."""
    tls: ssl.SSLContext | bool = True
    """The certificates to trust; True: those of the system."""

    def url(self, path: str) -> str:
        """URL of an API path such as `chat/completions`."""
        return f"{self.base_url.rstrip('/')}/{path}"

    def server_url(self, path: str) -> str:
        """URL of a path beside the API, such as vLLM's `tokenize`: the base URL without its version."""
        return f"{re.sub(r'/v[0-9][a-z0-9]*(/openai)?$', '', self.base_url.rstrip('/'))}/{path}"

    @cached_property
    def proxy(self) -> str | None:
        """The proxy for this URL from the environment (`HTTPS_PROXY`, `ALL_PROXY`, `NO_PROXY`, ...)."""
        return proxy_for(self.base_url)

    @property
    def proxy_note(self) -> str:
        """What an error says about the proxy, which may be its cause; empty without one."""
        return f". Requests go through the proxy {self.public(self.proxy)}: {_PROXY_ADVICE}" if self.proxy else ""

    def public(self, detail: str) -> str:
        """A server's message, fit for logs and files: at most 1,000 characters, without the key, which some servers
        repeat in errors, and without the user and password of a proxy, which aiohttp includes in errors."""
        key = self.api_key.get_secret_value()
        detail = _USER_IN_URL.sub("***", detail)
        return storable(detail.replace(key, "***") if len(key) >= 8 else detail)[:1000]

    def mask(self, failure: RequestFailed) -> RequestFailed:
        """Make the message of a failure `public`."""
        failure.args = (self.public(str(failure)),)
        return failure

    def unusable(self, failure: RequestFailed) -> EndpointError:
        """The error for a failure that every request to this endpoint would have."""
        problem, way_out = "rejects every request", "check --endpoint (ML_FILTER_ENDPOINT)"
        status = failure.status or 0
        if failure.code == OUT_OF_CREDIT:
            problem, way_out = "is out of credit", "add credit, then run the same command again to ask for the rest"
        elif status in (401, 403):
            problem, way_out = "rejected the key", f"set {self.key_name}"
        elif status == 407:
            problem, way_out = "is behind a proxy that asks for a user and password", "put them into the proxy's URL"
        elif 300 <= status < 400:
            problem, way_out = "redirects every request", "set --endpoint (ML_FILTER_ENDPOINT) to the final URL"
        elif status in (404, 405, 410):
            problem = f"does not know the model {self.model!r} or the path"
            way_out = "check --model (ML_FILTER_MODEL) and --endpoint (ML_FILTER_ENDPOINT)"
        return EndpointError(f"{self.base_url} {problem} ({str(failure).rstrip('.')}); {way_out}{self.proxy_note}")

    def certificate_problem(self, error: ssl.SSLCertVerificationError) -> EndpointError:
        """The error for a certificate that cannot be trusted."""
        problem = _CERTIFICATE_PROBLEMS.get(error.verify_code, "is not valid; the server needs another one")
        bundle = os.environ.get("SSL_CERT_FILE")
        if bundle and not Path(bundle).exists():
            problem += f". SSL_CERT_FILE is set to {bundle}, which does not exist"
        return EndpointError(f"the certificate of {self.base_url} {problem} (OpenSSL: {error.verify_message})")


class Client:
    """A pool of connections. `timeout_s` limits the complete request, so it also ends an answer that trickles in.

    The methods raise RequestFailed if no answer is usable, and EndpointError if no request can arrive, because of the
    URL, the certificate or the proxy.
    """

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout)

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()

    async def ask(self, endpoint: Endpoint, path: str, body: dict[str, Any]) -> Answer:
        """The model's answer to a request to an API path."""
        return await self._send("POST", endpoint, endpoint.url(path), orjson.dumps(body), read_answer)

    async def post(self, endpoint: Endpoint, url: str, body: dict[str, Any]) -> dict[str, Any]:
        """Send a JSON body and return the JSON object of the response. A rejected key or path is an EndpointError."""
        return await self._json("POST", endpoint, url, orjson.dumps(body))

    async def get(self, endpoint: Endpoint, url: str) -> dict[str, Any]:
        """The JSON object at a URL; errors as of `post`."""
        return await self._json("GET", endpoint, url, None)

    async def _json(self, method: str, endpoint: Endpoint, url: str, data: bytes | None) -> dict[str, Any]:
        try:
            return await self._send(method, endpoint, url, data, dict)
        except RequestFailed as failure:
            if failure.code in (FORBIDDEN, OUT_OF_CREDIT):
                raise endpoint.unusable(failure) from failure
            raise

    async def _send(
        self, method: str, endpoint: Endpoint, url: str, data: bytes | None, read: Callable[[dict[str, Any]], T]
    ) -> T:
        try:
            status, content, headers = await self._exchange(method, endpoint, url, data)
            if 300 <= status < 400:
                content = f"it redirects to {headers.get('Location', 'nowhere')}".encode()
            return read(read_body(status, content, retry_seconds(headers.get("Retry-After"))))
        except RequestFailed as failure:
            endpoint.mask(failure)
            raise

    async def stream(self, endpoint: Endpoint, path: str, body: dict[str, Any]) -> AsyncIterator[str]:
        """The text of an answer, part by part as the server writes it; all at once if it does not stream."""
        try:
            async with self._request("POST", endpoint, endpoint.url(path), orjson.dumps(body)) as response:
                if response.status != 200 or response.content_type != "text/event-stream":
                    yield read_answer(read_body(response.status, await _content(response))).text
                    return
                async for line in response.content:
                    if line.startswith(b"data:") and (part := read_part(line[5:].strip())):
                        yield part
        except RequestFailed as failure:
            endpoint.mask(failure)
            raise

    async def _exchange(
        self, method: str, endpoint: Endpoint, url: str, data: bytes | None
    ) -> tuple[int, bytes, Mapping[str, str]]:
        async with self._request(method, endpoint, url, data) as response:
            return response.status, await _content(response), response.headers

    @asynccontextmanager
    async def _request(
        self, method: str, endpoint: Endpoint, url: str, data: bytes | None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {endpoint.api_key.get_secret_value()}"}
        proxy = endpoint.proxy
        try:
            async with self._session.request(
                method, url, data=data, headers=headers, proxy=proxy, allow_redirects=False, ssl=endpoint.tls
            ) as response:
                yield response
        except TimeoutError as error:
            raise RequestFailed("timeout", f"no answer within {self.timeout_s:g} s", may_cost=True) from error
        except aiohttp.ClientConnectorCertificateError as error:
            raise endpoint.certificate_problem(error.certificate_error) from error  # type: ignore[arg-type]
        except aiohttp.ClientHttpProxyError as error:
            detail = f"the proxy {proxy} refuses the connection: {error.status} {error.message}"
            if error.status in (500, 502, 503, 504):
                raise RequestFailed("connection_error", detail) from error
            raise EndpointError(f"{endpoint.public(detail)}; {_PROXY_ADVICE}") from error
        except (ValueError, aiohttp.NonHttpUrlClientError) as error:  # a password in the URL is a ValueError
            host = urlsplit(endpoint.base_url).netloc.rpartition("@")[2]
            raise EndpointError(
                f"the endpoint {host or endpoint.base_url!r} is not a URL like http://host:port/v1 (keys go into "
                "ML_FILTER_API_KEY); check --endpoint (ML_FILTER_ENDPOINT)"
            ) from error
        except (aiohttp.ClientError, OSError) as error:
            if isinstance(error, aiohttp.ClientSSLError) and getattr(error.os_error, "reason", "") in _NO_TLS:
                raise EndpointError(f"{endpoint.base_url} does not speak TLS; use http:// in --endpoint") from error
            detail = f"{type(error).__name__}: {_SSL_CONTEXT.sub('', str(error))}"
            if isinstance(error, aiohttp.ClientProxyConnectionError):
                detail = f"cannot connect to the proxy {proxy} ({error}); {_PROXY_ADVICE}"
            was_sent = not isinstance(error, aiohttp.ClientConnectorError)
            raise RequestFailed("connection_error", detail, may_cost=was_sent) from error


async def _content(response: aiohttp.ClientResponse) -> bytes:
    try:
        await response.content.readexactly(_MAX_BYTES + 1)
    except asyncio.IncompleteReadError as complete:
        return complete.partial
    raise RequestFailed("malformed_answer", f"the answer is longer than {_MAX_BYTES:,} bytes", may_cost=True)


def retry_seconds(retry_after: str | None) -> float | None:
    """The seconds that a `Retry-After` header asks for; it may hold seconds or a date."""
    try:
        seconds = float(retry_after or "nan")
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(str(retry_after)) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return None
    return max(seconds, 0.0) if math.isfinite(seconds) else None
