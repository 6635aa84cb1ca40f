"""What a web page says about itself, and where it leads: found in the process of `extraction.py`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lxml.html import HtmlElement

_MAX_LINKS = 10_000
_MAX_VALUE = 2000


@dataclass(frozen=True)
class Page:
    """Title, language and licence if the page states them, and its links as they are written.

    `base` is the URL that links are relative to; None: that of the page. Links with rel="nofollow" are left out, and
    all links of a page that asks robots not to follow them.
    """

    title: str | None
    language: str | None
    license: str | None
    base: str | None
    links: list[str]


def extract(tree: HtmlElement) -> str:
    """The properties and links of a page as JSON."""
    robots = " ".join(tree.xpath("//meta[translate(@name, 'ROBTS', 'robts')='robots']/@content")).lower()
    values = {
        "title": tree.xpath("string(//title)"),
        "language": tree.xpath("string(/html/@lang)"),
        "license": tree.xpath("string((//*[contains(concat(' ', @rel, ' '), ' license ')]/@href)[1])"),
        "base": tree.xpath("string((//base/@href)[1])"),
    }
    cleaned = {name: " ".join(value.split())[:_MAX_VALUE] or None for name, value in values.items()}
    follows = "nofollow" not in robots and "none" not in robots.replace(",", " ").split()
    return json.dumps({**cleaned, "links": list(_links(tree)) if follows else []})


def _links(tree: HtmlElement) -> Iterator[str]:
    found: dict[str, None] = {}
    for link in tree.iterfind(".//a[@href]"):
        if "nofollow" not in (link.get("rel") or "").lower() and len(link.get("href")) <= _MAX_VALUE:
            found[link.get("href").strip()] = None
        if len(found) >= _MAX_LINKS:
            break
    yield from found
