"""Web pages and PDFs: the text of a response, and its links within the host."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from yarl import URL

from ml_filter.documents.extraction import ExtractionError, read_page
from ml_filter.documents.readers.base import Problem, problem_with_text
from ml_filter.documents.readers.http import is_html, markup_of, text_of
from ml_filter.documents.readers.pdf import document_of
from ml_filter.downstream.fetching.client import page_url
from ml_filter.downstream.fetching.config import FetchConfig
from ml_filter.downstream.fetching.items import Document, Item, Reject, Rejected, Request, Response
from ml_filter.errors import ConfigError
from ml_filter.location import Location

HANDLER = "page"


def start(config: FetchConfig) -> Iterator[Request]:
    """The addresses of the settings."""
    for url in config.urls:
        yield Request(str(page_url(url)), HANDLER, "web", depth=config.depth)
    if config.url_file is None:
        return
    lines = Location(config.url_file).read_bytes().decode("utf-8-sig", "replace").splitlines()
    addresses = [(n, line) for n, line in enumerate(lines, 1) if line.strip() and not line.startswith("#")]
    if not addresses:
        raise ConfigError(f"{config.url_file} has no address")
    for number, line in addresses:
        try:
            yield Request(str(page_url(line)), HANDLER, "web", depth=config.depth)
        except Rejected as problem:
            raise ConfigError(f"{config.url_file}, line {number}: not an address ({problem.detail})") from problem


def read(request: Request, response: Response, config: FetchConfig) -> Iterator[Item]:
    """The document of a page or PDF and, to the depth of the request, the pages of its host that it links to."""
    facts: dict[str, Any] = {}
    if is_pdf(response):
        row = document_of(response.body, config.text)
        text: Any = row if isinstance(row, Problem) else row["text"]
        facts = {} if isinstance(row, Problem) else {"title": row["title"]}
    else:
        text = text_of(response.body, response.content_type, config.text)
        if is_html(response.body, response.content_type) and isinstance(markup := _markup(response), str):
            try:
                page = read_page(markup, config.max_extraction_seconds)
            except ExtractionError:
                pass  # the reject of the text says why
            else:
                facts = {"title": page.title, "language": page.language, "license": page.license}
                if request.depth > 0:
                    yield from _linked(page.links, page.base, request, response)
    problem = text if isinstance(text, Problem) else problem_with_text(text, config.text)
    if problem is not None:
        yield Reject(response.url, problem.reason, problem.detail)
        return
    yield Document(request.key or response.url, text, response.url, {**facts, **request.facts})


def is_pdf(response: Response) -> bool:
    """Whether a response is a PDF, by how it begins or by what its header says."""
    return response.body[:1024].lstrip().startswith(b"%PDF-") or "application/pdf" in response.content_type.lower()


def _markup(response: Response) -> str | Problem:
    return markup_of(response.body, response.content_type)


def _linked(links: list[str], base: str | None, request: Request, response: Response) -> Iterator[Request]:
    here = URL(response.url)
    try:
        start = page_url(base, here) if base else here
    except Rejected:
        start = here
    for link in links:
        try:
            url = page_url(link, start)
        except Rejected:
            continue  # mailto:, javascript: and the like are not pages
        if url.origin() == here.origin() and url != here:
            yield Request(str(url), HANDLER, request.source, depth=request.depth - 1)
