"""Where documents come from: one file for each source, with its first requests and how its responses are read."""

from __future__ import annotations

from collections.abc import Iterator

from ml_filter.downstream.fetching.config import FetchConfig
from ml_filter.downstream.fetching.items import Handler, Request
from ml_filter.downstream.fetching.sources import arxiv, feeds, github, pages, sitemaps

_STARTS = (pages.start, sitemaps.start, feeds.start, arxiv.start, github.start)


def _arxiv_delay(config: FetchConfig) -> float:
    return config.arxiv.delay_s if config.arxiv else 0.0


HANDLERS = {
    pages.HANDLER: Handler(pages.read, may_render=True),
    sitemaps.HANDLER: Handler(sitemaps.read, is_list=True),
    sitemaps.ROBOTS_HANDLER: Handler(sitemaps.read_robots, is_list=True, may_be_missing=True),
    feeds.HANDLER: Handler(feeds.read, is_list=True),
    arxiv.HANDLER: Handler(arxiv.read, is_list=True, is_api=True, delay_s=_arxiv_delay),
    arxiv.PDF_HANDLER: Handler(pages.read, delay_s=_arxiv_delay),
    github.HANDLER: Handler(github.read, is_list=True, is_api=True, headers=github.headers),
    github.COMMIT_HANDLER: Handler(github.read_commit, is_list=True, is_api=True, headers=github.headers),
    github.ARCHIVE_HANDLER: Handler(github.read_archive, is_api=True, headers=github.headers),
}
"""By the name in `Request.handler`."""


def first_requests(config: FetchConfig) -> Iterator[Request]:
    """The requests with which a round begins."""
    for start in _STARTS:
        yield from start(config)


def is_list(request: Request) -> bool:
    """Whether the response to a request names others."""
    return HANDLERS[request.handler].is_list or (request.depth > 0 and request.handler == pages.HANDLER)
