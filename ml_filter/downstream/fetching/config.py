"""Configuration of fetching."""

from __future__ import annotations

import re
from datetime import date
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from ml_filter.config import Cli, StageConfig
from ml_filter.documents.config import SourceConfig
from ml_filter.documents.extraction import Extractor
from ml_filter.mongodb import SafePath


def _web_address(url: str) -> str:
    try:
        parts = urlsplit(url)
        is_usable = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        is_usable = False
    if not is_usable:
        raise ValueError("an address is of the form https://HOST/PATH")
    if "@" in parts.netloc:
        raise ValueError("an address must not hold a user or a password: it is written to documents and logs")
    return url


Url = Annotated[str, AfterValidator(_web_address)]


def _contact(text: str) -> str:
    if not (text.isascii() and text.isprintable() and re.search(r"[^\s@]@[^\s@]|https?://[^\s/]", text)):
        raise ValueError(f"{text!r} is not an e-mail address or URL")
    return text


def _repository(name: str) -> str:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", name):
        raise ValueError("a repository is written as OWNER/NAME or OWNER/NAME@REVISION")
    return name


def _day(text: Any) -> Any:
    if isinstance(text, str) and not re.fullmatch(r"\d{4}-\d\d-\d\d", text):
        raise ValueError("a day is written as in 2026-01-31")
    return text


Repository = Annotated[str, AfterValidator(_repository)]
Day = Annotated[date, BeforeValidator(_day)]


class ArxivConfig(StageConfig):
    """Which papers of arXiv are fetched."""

    query: str = Field(description="search terms in the syntax of the arXiv API, such as cat:cs.CL AND all:corpus")
    since: Day | None = Field(None, description="only papers submitted on or after this day (default: any)")
    until: Day | None = Field(None, description="only papers submitted on or before this day (default: any)")
    max_papers: Annotated[int, Field(ge=1, le=50_000)] = Field(
        1000, description="maximum number of papers, the most recently updated first"
    )
    content: Literal["pdf", "abstract"] = Field(
        "pdf", description="text of a document: that of the PDF, or title and abstract, which need no further request"
    )
    api_url: Url = Field("https://export.arxiv.org/api/query", description="address of the API")
    delay_s: Annotated[float, Field(ge=0)] = Field(
        3, description="seconds between two requests to arXiv, whose terms ask for 3 and one connection"
    )


class GithubConfig(StageConfig):
    """Which files of GitHub repositories are fetched."""

    repositories: Annotated[list[Repository], Field(min_length=1)] = Field(
        description="repositories as OWNER/NAME, or OWNER/NAME@REVISION (default: the default branch)"
    )
    extensions: Annotated[list[str], Field(min_length=1), Cli(comma_separated=True)] = Field(
        ["md", "rst", "txt"], description="endings of the files that are documents"
    )
    api_url: Url = Field("https://api.github.com", description="address of the API")


class FetchBudgetConfig(StageConfig):
    """What one run may spend. What is left is fetched by the next run."""

    requests: Annotated[int, Field(ge=1)] | None = Field(
        10_000, description="maximum number of requests, robots.txt included"
    )
    bytes: Annotated[int, Field(ge=1)] | None = Field(
        None, description="maximum number of bytes received (default: no limit)"
    )
    documents: Annotated[int, Field(ge=1)] | None = Field(
        None, description="maximum number of documents that are new or changed (default: no limit)"
    )
    seconds: Annotated[float, Field(gt=0)] | None = Field(None, description="longest time in seconds (default: none)")


class FetchConfig(StageConfig):
    """What is fetched, how politely, and what a run may spend."""

    urls: Annotated[list[Url], Cli("--url")] = Field([], description="addresses of web pages or PDFs")
    url_file: SafePath | None = Field(None, description="file with an address in each line (default: none)")
    depth: Annotated[int, Field(ge=0, le=100)] = Field(
        0, description="how many links to follow from a web page, within its host"
    )
    sitemaps: Annotated[list[Url], Cli("--sitemap")] = Field(
        [], description="sitemaps or indexes of sitemaps; of a host alone, those that its robots.txt names"
    )
    feeds: Annotated[list[Url], Cli("--feed")] = Field([], description="RSS or Atom feeds, whose entries are fetched")
    arxiv: Annotated[
        ArxivConfig | None,
        Cli(
            metavar="QUERY",
            options={"query": "--arxiv"}
            | {name: f"--arxiv-{name.replace('_', '-')}" for name in ("since", "until", "max_papers", "content")},
        ),
    ] = Field(None, description="papers of arXiv that match a query of its API, such as cat:cs.CL AND all:corpus")
    github: Annotated[
        GithubConfig | None,
        Cli(metavar="OWNER/NAME", options={"repositories": "--github", "extensions": "--github-extensions"}),
    ] = Field(None, description="GitHub repositories, as OWNER/NAME or OWNER/NAME@REVISION")
    browser: bool = Field(False, description="open web pages in Chromium, for those that are made by scripts")
    extractor: Extractor = Field(
        "trafilatura", description="how to get the text of a web page: trafilatura, resiliparse, justext or text"
    )
    max_extraction_seconds: Annotated[float, Field(ge=0.01, le=3600)] = Field(
        30, description="maximum CPU time for the text of a page or PDF; a longer one is an extraction_timeout"
    )
    max_text_bytes: Annotated[int, Field(gt=0)] = Field(
        10 * 2**20, description="longest text in bytes; a longer one is rejected as text_too_long"
    )
    contact: Annotated[str, AfterValidator(_contact)] = Field(
        description="e-mail address or URL at which the operator of a site can reach you; part of the User-Agent"
    )
    budget: Annotated[
        FetchBudgetConfig, Cli(options={name: f"--budget-{name}" for name in FetchBudgetConfig.model_fields})
    ] = Field(FetchBudgetConfig(), description="what one run may spend")
    delay_s: Annotated[float, Field(ge=0)] = Field(
        1, description="seconds between two requests to a host; a longer Crawl-delay of its robots.txt takes precedence"
    )
    max_concurrency: Annotated[int, Field(ge=1, le=256)] = Field(
        8, description="hosts that are asked at the same time; each host gets one request at a time"
    )
    timeout_s: Annotated[float, Field(gt=0)] = Field(60, description="seconds for a complete response")
    retries: Annotated[int, Field(ge=0, le=20)] = Field(
        3, description="retries of a request after a transient failure (429, 5xx, a lost connection)"
    )
    backoff_s: Annotated[float, Field(gt=0)] = Field(
        1, description="maximum seconds before the first retry, chosen at random; doubled for each further one"
    )
    max_wait_s: Annotated[float, Field(gt=0)] = Field(
        120, description="longest Retry-After or Crawl-delay to wait for; if it is longer, the next run asks again"
    )
    max_redirects: Annotated[int, Field(ge=0, le=20)] = Field(5, description="redirects of a request to follow")
    max_response_bytes: Annotated[int, Field(ge=1)] = Field(
        32 * 2**20, description="largest response, decompressed; of a larger one nothing is kept"
    )
    allow_local: bool = Field(
        False, description="allow loopback, private and link-local addresses, which a page could otherwise abuse"
    )
    state: SafePath | None = Field(
        None,
        description="local file with what was fetched and what is to be fetched next (default: .fetch.sqlite in the "
        "output; required if that is at a URL)",
    )
    shard_documents: Annotated[int, Field(ge=1)] = Field(1000, description="documents in a shard")

    @model_validator(mode="after")
    def _something_is_fetched(self) -> Self:
        if not (self.urls or self.url_file or self.sitemaps or self.feeds or self.arxiv or self.github):
            raise ValueError(
                "nothing to fetch: set urls (--url), url_file, sitemaps (--sitemap), feeds (--feed), arxiv or github"
            )
        return self

    @property
    def pinned(self) -> dict[str, Any]:
        """The settings that decide what is in a directory; the others may change from run to run."""
        what = {"urls", "url_file", "depth", "sitemaps", "feeds", "browser", "extractor", "max_text_bytes"}
        arxiv = self.arxiv and self.arxiv.model_dump(mode="json", exclude={"delay_s", "max_papers"})
        github = self.github and self.github.model_dump(mode="json")
        return {**self.model_dump(mode="json", include=what), "arxiv": arxiv, "github": github}

    @property
    def text(self) -> SourceConfig:
        """How the text of a response is extracted."""
        names = {"extractor", "max_extraction_seconds", "max_text_bytes"}
        return SourceConfig(**self.model_dump(include=names))
