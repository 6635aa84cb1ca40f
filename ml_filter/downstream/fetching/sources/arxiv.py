"""arXiv: papers that match a query of its API, by the date of their last update, as abstracts or PDFs.

The API gives no licence; it is on the page of each paper.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import parse_qs, urlencode, urlsplit

from ml_filter.downstream.fetching.client import page_url
from ml_filter.downstream.fetching.config import ArxivConfig, FetchConfig
from ml_filter.downstream.fetching.items import Document, Item, Reject, Rejected, Request, Response
from ml_filter.downstream.fetching.sources.feeds import iso_date
from ml_filter.downstream.fetching.xml import Reader, Record, TooManyElements

HANDLER, PDF_HANDLER = "arxiv", "arxiv_pdf"
PAGE = 100
"""Papers in one response of the API."""
_ID = re.compile(r"^https?://([^/]+)/abs/(.+?)(v\d+)?$")


def start(config: FetchConfig) -> Iterator[Request]:
    """The first page of the list of papers."""
    if config.arxiv is not None:
        yield _page(config.arxiv, 0)


def _page(arxiv: ArxivConfig, first: int) -> Request:
    query = arxiv.query
    if arxiv.since or arxiv.until:
        since = f"{arxiv.since:%Y%m%d}0000" if arxiv.since else "199101010000"
        until = f"{arxiv.until:%Y%m%d}2359" if arxiv.until else "299912312359"
        query = f"({query}) AND submittedDate:[{since} TO {until}]"
    values = {
        "search_query": query,
        "start": first,
        "max_results": min(PAGE, arxiv.max_papers - first),
        "sortBy": "lastUpdatedDate",
        "sortOrder": "descending",
    }
    # The list begins with what is new: if the whole page is known, so are the pages after it.
    return Request(f"{arxiv.api_url}?{urlencode(values)}", HANDLER, "arxiv", only_if_new=first > 0)


def read(request: Request, response: Response, config: FetchConfig) -> Iterator[Item]:
    """The papers of a page of the list, and the next page."""
    assert config.arxiv is not None
    first = int(parse_qs(urlsplit(request.url).query)["start"][0])
    reader = Reader(("entry", "totalResults"))
    total, papers = 0, 0
    try:
        for record in reader.records([response.body]):
            if record.name == "totalResults":
                total = int(record.text) if record.text.strip().isdecimal() else 0
                continue
            papers += 1
            yield from _paper(record, config.arxiv, response)
    except TooManyElements:
        yield Reject(response.url, "too_long", "more elements than a page of papers needs")
    wanted = min(total, config.arxiv.max_papers)
    if reader.root != "feed":
        yield Reject(response.url, "not_a_feed", f"its first element is {reader.root[:50]!r}")
    elif first + papers < min(wanted, first + PAGE):
        # The API sometimes sends a page that is too short, and the whole one when it is asked again.
        yield Reject(response.url, "incomplete_list", f"{papers} papers from {first:,} on, of {total:,}")
    if papers and first + papers < wanted:
        yield _page(config.arxiv, first + papers)


def _paper(record: Record, arxiv: ArxivConfig, response: Response) -> Iterator[Item]:
    address, title, abstract = record.first("id"), record.first("title"), record.first("summary")
    match = _ID.match(address)
    if match is None:
        yield Reject(address[:2000] or response.url, "api_error", abstract or title)
        return
    _, paper, version = match.groups()
    key = f"arxiv:{paper}"
    facts = {"title": " ".join(title.split()), "published": iso_date(record.first("published"))}
    if arxiv.content == "abstract":
        text = f"{facts['title']}\n\n{' '.join(abstract.split())}"
        yield Document(key, text, address, facts, owner=key)
        return
    links = [f.attributes.get("href", "") for f in record.fields if f.name == "link"]
    link = next((link for link in links if "/pdf/" in link), f"https://arxiv.org/pdf/{paper}{version or ''}")
    try:
        url = page_url(re.sub(r"^http://(?=arxiv\.org/)", "https://", link))  # else each costs a redirect
    except Rejected as problem:
        yield Reject(address, problem.reason, problem.detail)
        return
    yield Request(str(url), PDF_HANDLER, "arxiv", key=key, version=version, facts=facts)
