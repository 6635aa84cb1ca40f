"""RSS and Atom feeds: the entries' pages are fetched; dates, titles and licences come from the feed."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from yarl import URL

from ml_filter.documents.readers.http import decoded_text
from ml_filter.downstream.fetching.client import page_url
from ml_filter.downstream.fetching.config import FetchConfig
from ml_filter.downstream.fetching.items import Item, Reject, Rejected, Request, Response
from ml_filter.downstream.fetching.sources import pages
from ml_filter.downstream.fetching.xml import Reader, Record, TooManyElements

HANDLER = "feed"
_ROOTS = ("rss", "feed", "RDF")


def start(config: FetchConfig) -> Iterator[Request]:
    """The feeds of the settings."""
    for url in config.feeds:
        yield Request(str(page_url(url)), HANDLER, "feed")


def read(request: Request, response: Response, config: FetchConfig) -> Iterator[Item]:
    """The page of each entry."""
    reader = Reader(("item", "entry", "language"), encoding="utf-8")
    text = decoded_text(response.body, response.content_type or "") or response.body.decode("utf-8", "replace")
    language, entries = None, 0
    try:
        for record in reader.records([text.encode("utf-8", "replace")]):
            if record.name == "language":
                language = record.text.strip() or None
                continue
            entries += 1
            link = _link(record)
            try:
                url = page_url(link, URL(response.url))
            except Rejected as problem:
                yield Reject(link[:2000] or response.url, problem.reason, f"entry {entries}: {problem.detail}")
                continue
            facts = {
                "title": record.first("title"),
                "published": iso_date(record.first("published", "pubDate", "date", "issued", "updated")),
                "license": _license(record),
                "language": language,
            }
            facts = {name: value for name, value in facts.items() if value}
            yield Request(str(url), pages.HANDLER, request.source, version=record.first("updated") or None, facts=facts)
    except TooManyElements:
        yield Reject(response.url, "too_long", "more elements than a feed needs")
        return
    if not entries and reader.root not in _ROOTS:
        yield Reject(response.url, "not_a_feed", f"its first element is {reader.root[:50]!r}")
    elif reader.problem is not None:
        yield Reject(response.url, "truncated", reader.problem, ends_response=True)


def _link(record: Record) -> str:
    """The address of an entry's page: RSS has it as text, Atom in an attribute."""
    links = [field for field in record.fields if field.name == "link"]
    for field in links:
        if field.attributes.get("href") and field.attributes.get("rel", "alternate") == "alternate":
            return field.attributes["href"]
    text = next((field.text.strip() for field in links if field.text.strip()), "")
    guid = next((field for field in record.fields if field.name == "guid"), None)
    if not text and guid is not None and guid.attributes.get("isPermaLink", "true") == "true":
        return guid.text.strip()
    return text


def _license(record: Record) -> str:
    """The licence of an entry: Creative Commons' element, or Atom's link (RFC 4946)."""
    for field in record.fields:
        if field.name == "link" and field.attributes.get("rel") == "license":
            return field.attributes.get("href", "")
    return record.first("license", "rights")


def iso_date(text: str) -> str | None:
    """A date of RSS (RFC 822) or Atom (ISO 8601) as ISO 8601 in UTC; None: it is not a date."""
    for parse in (datetime.fromisoformat, parsedate_to_datetime):
        try:
            time = parse(text)
            return (time if time.tzinfo else time.replace(tzinfo=UTC)).astimezone(UTC).isoformat(timespec="seconds")
        except (ValueError, TypeError, OverflowError, IndexError):
            continue
    return None
