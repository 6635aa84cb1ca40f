"""What sources and the loop exchange: requests, responses, documents and rejects."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ml_filter.downstream.fetching.config import FetchConfig


@dataclass(frozen=True)
class Request:
    """Something to fetch.

    Attributes:
        handler: name of the function that reads the response (sources/__init__.py).
        source: the document's column `source`.
        key: what the request is known by from run to run, although its URL may change; "": the URL.
        version: changes with the content, as the source states it; with the same version it is not fetched again.
        depth: how many links to follow from here.
        facts: what the source says about the document: `title`, `language`, `license`, `published`.
        only_if_new: it is needed only if what was named beside it is new, as the next page of a list that begins with
            the newest.
    """

    url: str
    handler: str
    source: str
    key: str = ""
    version: str | None = None
    depth: int = 0
    facts: Mapping[str, Any] = field(default_factory=dict)
    only_if_new: bool = False

    @property
    def name(self) -> str:
        """The key, or else the URL."""
        return self.key or self.url


@dataclass(frozen=True)
class Response:
    """A response with the status 200 (or another of success), and the URL that it came from after redirects."""

    url: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def content_type(self) -> str:
        """The header of this name; "" without one."""
        return self.headers.get("content-type", "")


@dataclass(frozen=True)
class Document:
    """A document of a response. `key`: what it is known by from run to run, from which its id is made."""

    key: str
    text: str
    url: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    owner: str = ""
    """The request that it belongs to ("": that of the response): when it is fetched again, its old documents go."""


@dataclass(frozen=True)
class Reject:
    """A URL, or part of a response, that gave no document. `ends_response`: the rest of the response is missing."""

    url: str
    reason: str
    detail: str = ""
    ends_response: bool = False


Item = Request | Document | Reject


@dataclass(frozen=True)
class Handler:
    """How a kind of request is made, and how its response is read.

    Attributes:
        is_list: the response names other requests; without any change, these are made again.
        is_api: the use is governed by terms of the API, not by robots.txt, and `headers` are sent.
        delay_s: least seconds between two of these requests, beside those of the host.
        may_render: a browser may open it.
        may_be_missing: a host without it is like one where it is empty.
    """

    read: Callable[[Request, Response, FetchConfig], Iterator[Item]]
    is_list: bool = False
    is_api: bool = False
    delay_s: Callable[[FetchConfig], float] = lambda _: 0.0
    headers: Callable[[], Mapping[str, str]] = dict
    may_render: bool = False
    may_be_missing: bool = False


class Rejected(Exception):
    """A request that gave nothing, with the reason of its reject."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


class Postponed(Exception):
    """A host that asks to come back later than this run waits."""

    def __init__(self, host: str, detail: str) -> None:
        super().__init__(f"{host}: {detail}")
        self.host, self.detail = host, detail


class BudgetSpent(Exception):
    """The run may not make another request; the message names what is spent."""
