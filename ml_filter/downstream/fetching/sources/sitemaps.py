"""Sitemaps and indexes of sitemaps (sitemaps.org), plain, compressed or as a list of lines."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from itertools import chain

from courlan import extract_domain
from yarl import URL

from ml_filter.documents.readers.files import DamagedFile, Gap, InputFile
from ml_filter.downstream.fetching.client import page_url
from ml_filter.downstream.fetching.config import FetchConfig
from ml_filter.downstream.fetching.items import Item, Reject, Rejected, Request, Response
from ml_filter.downstream.fetching.sources import pages
from ml_filter.downstream.fetching.xml import Reader, TooManyElements

HANDLER, ROBOTS_HANDLER = "sitemap", "sitemaps_of_robots"
MAX_URLS = 50_000
MAX_BYTES = 50 * 2**20
"""Limits of the protocol for one sitemap, uncompressed."""
_MAX_LEVELS = 3
_LINE = re.compile(rb"(?m)^\s*(https?://\S+)\s*$")
_LONGEST_LINE = 2**16


def start(config: FetchConfig) -> Iterator[Request]:
    """The sitemaps of the settings; for a host alone, its robots.txt, which names them."""
    for text in config.sitemaps:
        url = page_url(text)
        if url.path == "/" and not url.query_string:
            yield Request(str(url / "robots.txt"), ROBOTS_HANDLER, "sitemap")
        else:
            yield Request(str(url), HANDLER, "sitemap", depth=_MAX_LEVELS)


def read_robots(request: Request, response: Response, config: FetchConfig) -> Iterator[Item]:
    """The sitemaps that robots.txt names, or the usual one if it names none."""
    found = re.findall(r"(?im)^\s*sitemap\s*:\s*(\S+)", response.body.decode("utf-8", "replace"))
    for link in list(dict.fromkeys(found))[:MAX_URLS] or ["/sitemap.xml"]:
        try:
            yield Request(str(page_url(link, URL(response.url))), HANDLER, "sitemap", depth=_MAX_LEVELS)
        except Rejected as problem:
            yield Reject(link[:2000], problem.reason, problem.detail)


def read(request: Request, response: Response, config: FetchConfig) -> Iterator[Item]:
    """The pages of a sitemap, which must be of its own site, or the sitemaps of an index."""
    content = _Content(response)
    reader = Reader(("url", "sitemap"))
    site, host, count = _site(response.url), URL(response.url).host, 0
    try:
        for is_index, link, version in _links(reader, content):
            count += 1
            if count > MAX_URLS:
                yield Reject(response.url, "too_long", f"more than {MAX_URLS:,} addresses; the rest is left out")
                return
            try:
                url = page_url(link, URL(response.url))
            except Rejected as problem:
                yield Reject(link[:2000], problem.reason, problem.detail)
                continue
            if url.host != host and _site(str(url)) != site:
                yield Reject(str(url), "other_site", f"named by {response.url}")
            elif is_index and request.depth <= 1:
                yield Reject(str(url), "too_deep", "an index within an index within an index")
            elif is_index:
                yield Request(str(url), HANDLER, request.source, depth=request.depth - 1)
            else:
                yield Request(str(url), pages.HANDLER, request.source, version=version or None)
    except TooManyElements:
        yield Reject(response.url, "too_long", "more elements than a sitemap can have")
        return
    if content.problem is not None:
        reason, detail = content.problem
        yield Reject(response.url, reason, detail, ends_response=reason != "too_large")
    elif not count and reader.root not in ("urlset", "sitemapindex"):
        yield Reject(response.url, "not_a_sitemap", f"its first element is {reader.root[:50]!r}")
    elif content.is_xml and reader.problem is not None:
        yield Reject(response.url, "truncated", reader.problem, ends_response=True)


def _links(reader: Reader, content: _Content) -> Iterator[tuple[bool, str, str]]:
    """Whether it is of an index, the address and the time of its last change."""
    if not content.is_xml:
        rest = b""  # the beginning of a line that ends in the next piece
        for piece in chain(content, [b"\n"]):
            lines, end, rest = (rest + piece).rpartition(b"\n")
            yield from ((False, link.decode("utf-8", "replace"), "") for link in _LINE.findall(lines + end))
            if len(rest) > _LONGEST_LINE:
                return
        return
    for record in reader.records(content):
        if link := record.first("loc"):
            yield record.name == "sitemap", link, record.first("lastmod")


class _Content:
    """The decompressed pieces of a sitemap, up to the limit.

    Attributes:
        problem: why the end is missing: reason and details.
    """

    def __init__(self, response: Response) -> None:
        self._file = InputFile(io.BytesIO(response.body), response.url)
        self.problem: tuple[str, str] | None = None
        pieces = self._file.pieces()
        head = next(pieces, b"")
        self._pieces = chain([head], pieces)
        self.is_xml = not (isinstance(head, bytes) and _LINE.match(head.removeprefix(b"\xef\xbb\xbf")))

    def __iter__(self) -> Iterator[bytes]:
        size = 0
        try:
            for piece in self._pieces:
                if isinstance(piece, Gap):
                    self.problem = (piece.reason, piece.detail)
                    return
                size += len(piece)
                if size > MAX_BYTES:
                    self.problem = ("too_large", f"more than {MAX_BYTES:,} bytes, the limit of the protocol")
                    return
                yield piece
        except DamagedFile as error:
            self.problem = (error.reason, str(error))


def _site(url: str) -> str:
    """The registered domain of a URL, or its host if it has none."""
    return extract_domain(url, fast=True) or URL(url).host or ""
