"""One loop fetches what the sources ask for, host by host, and records each response before the next."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from loguru import logger

from ml_filter.documents.manifest import Manifest, find_manifest
from ml_filter.documents.readers.http import is_html
from ml_filter.documents.rejects import nothing_read
from ml_filter.downstream.fetching.browser import Browser
from ml_filter.downstream.fetching.client import Client, NotModified
from ml_filter.downstream.fetching.config import FetchConfig
from ml_filter.downstream.fetching.gates import Meter
from ml_filter.downstream.fetching.items import BudgetSpent, Postponed, Reject, Rejected, Request, Response
from ml_filter.downstream.fetching.output import output_of, write_output
from ml_filter.downstream.fetching.sources import HANDLERS, first_requests, is_list
from ml_filter.downstream.fetching.state import State
from ml_filter.errors import ConfigError, InputError, MlFilterError
from ml_filter.extras import require_extra
from ml_filter.location import Location
from ml_filter.progress import Progress, progress

STATE_NAME = ".fetch.sqlite"


class Fetched(NamedTuple):
    """The directory of all documents so far, and the figures of this run.

    Figures: `requests`, `bytes`, documents that are `new`, `changed`, `unchanged` or `gone`, requests that were
    `skipped` because their version is known, `rejected_REASON`, and `pending`, what the next run begins with.
    """

    manifest: Manifest
    figures: dict[str, int]


def fetch_documents(config: FetchConfig, output: str | Path) -> Fetched:
    """Fetch what is new or changed, and add it to a directory of documents.

    Resumable: what was fetched is not requested again, and what the budget left is fetched by the next run. A run that
    finds nothing pending begins a new round, in which unchanged content costs a conditional request at most.

    Args:
        output: directory or URL; `{digest}` in it stands for a digest of the sources.

    Raises:
        InputError: the directory belongs to other settings, or there is no document at all.
        ConfigError: a setting is wrong, or an extra that it needs is not installed.
    """
    require_extra("fetch", "fetch", "protego")
    directory = output_of(config, output)
    path = _state_path(config, directory.path)
    if (manifest := find_manifest(directory.path)) and manifest.config_digest != directory.config_digest:
        raise InputError(f"{directory.path} contains documents of other sources or settings; choose another --output")
    state = State(path, directory.config_digest)
    try:
        state.begin((request, is_list(request)) for request in first_requests(config))
        figures = asyncio.run(_fetch(config, state))
        manifest = write_output(config, output, state, figures)
        first = next(state.rejects(), None)
    finally:
        state.close()
    if not manifest.rows:
        counts = {name: count for name, count in manifest.counts.items() if name.startswith("rejected_")}
        detail = None
        if first is not None:
            _, url, reason, cause = first
            detail = f"{reason}, {url}{cause and ': '}{cause}; see {manifest.path_of('rejects.jsonl')}"
        raise nothing_read([*dict.fromkeys(_named(config))], counts, first=detail)
    return Fetched(manifest, figures)


def _named(config: FetchConfig) -> Iterator[str]:
    yield from (request.url for request in first_requests(config))


def _state_path(config: FetchConfig, output: str) -> Path:
    if config.state is not None:
        return Path(config.state)
    if not Location(output).is_local:
        raise ConfigError(f"{output} is at a URL: name a local file for what was fetched with --state")
    return Location(output).local / STATE_NAME


async def _fetch(config: FetchConfig, state: State) -> dict[str, int]:
    meter = Meter(config.budget)
    counts: Counter[str] = Counter()

    def note() -> str:
        rejected = sum(count for name, count in counts.items() if name.startswith("rejected_"))
        return (
            f"{counts['new']:,} new, {counts['changed']:,} changed, {rejected:,} rejected, {meter.bytes / 1e6:,.1f} MB"
        )

    with progress("Fetching", note=note) as bar:
        async with AsyncExitStack() as stack:
            client = await stack.enter_async_context(Client(config, meter))
            browser = await stack.enter_async_context(Browser(config, client)) if config.browser else None
            await _Loop(config, state, client, browser, counts, bar).run()
    figures = {"requests": meter.requests, "bytes": meter.bytes}
    figures |= {name: counts[name] for name in ("new", "changed", "unchanged", "gone", "skipped")}
    figures |= {name: count for name, count in sorted(counts.items()) if name.startswith("rejected_")}
    return {**figures, "pending": state.pending}


class _Loop:
    """Works on several hosts at a time, each in its own task, until nothing is pending or the budget is spent."""

    def __init__(
        self,
        config: FetchConfig,
        state: State,
        client: Client,
        browser: Browser | None,
        counts: Counter[str],
        bar: Progress,
    ) -> None:
        self._config, self._state, self._client, self._browser = config, state, client, browser
        self._counts, self._bar = counts, bar
        self._spent = ""
        self._postponed: dict[str, str] = {}

    async def run(self) -> None:
        tasks: dict[asyncio.Task[None], str] = {}
        try:
            while not self._spent:
                busy = {*tasks.values(), *self._postponed}
                waiting = (host for host in self._state.hosts() if host not in busy)
                for host in list(islice(waiting, self._config.max_concurrency - len(tasks))):
                    tasks[asyncio.create_task(self._work_on(host))] = host
                if not tasks:
                    break
                finished, _ = await asyncio.wait(tasks, timeout=1.0, return_when=asyncio.FIRST_COMPLETED)
                for task in finished:
                    del tasks[task]
                    task.result()
            for task in tasks:
                await task
        finally:
            for task in tasks:
                task.cancel()
        if self._spent:
            logger.info(f"The budget is spent ({self._spent}); run the same command again for the rest")
        for host, detail in self._postponed.items():
            logger.warning(f"{host} asks to come back later ({detail}); run the same command again for the rest")

    async def _work_on(self, host: str) -> None:
        """Make the pending requests to one host, one after another."""
        while not self._spent and (request := self._state.next(host)) is not None:
            try:
                self._client.meter.check()
                await self._make(request)
            except BudgetSpent as spent:
                self._spent = str(spent)
            except Postponed as problem:
                if problem.host == urlsplit(f"//{host}").hostname:
                    self._postponed[host] = problem.detail
                    return
                await self._reject(request, "http_status", str(problem))  # a redirect led to another host
            self._bar.advance()

    async def _make(self, request: Request) -> None:
        try:
            response = await self._get(request)
        except NotModified:
            await asyncio.to_thread(self._state.record_unchanged, request, is_list(request))
            self._counts["unchanged"] += not HANDLERS[request.handler].is_list
        except Rejected as problem:
            if HANDLERS[request.handler].may_be_missing and problem.reason == "http_status":
                await self._record(request, Response(request.url, b""))
            else:
                await self._reject(request, problem.reason, problem.detail)
        else:
            await self._record(request, response)

    async def _record(self, request: Request, response: Response) -> None:
        fetched_at = datetime.now(UTC).isoformat(timespec="seconds")
        try:
            counts = await asyncio.to_thread(self._read, request, response, fetched_at)
        except (MlFilterError, sqlite3.Error, OSError):
            raise
        except Exception as error:  # content that no test has thought of must not end the run
            logger.warning(f"{request.url} cannot be read ({type(error).__name__}: {error}); please report it")
            await self._reject(request, "unreadable", f"{type(error).__name__}: {error}")
            return
        self._counts.update(counts)
        self._client.meter.documents += counts["new"] + counts["changed"]

    async def _get(self, request: Request) -> Response:
        handler = HANDLERS[request.handler]
        browser = self._browser if handler.may_render else None
        # A page may be the same while what its scripts load has changed.
        validators = {} if browser is not None else self._state.validators(request)
        response = await self._client.get(
            request.url,
            headers={**handler.headers(), **validators},
            is_api=handler.is_api,
            delay_s=handler.delay_s(self._config),
        )
        if browser is not None and is_html(response.body, response.content_type):
            return await browser.render(response)
        return response

    def _read(self, request: Request, response: Response, fetched_at: str) -> Counter[str]:
        handler = HANDLERS[request.handler]
        items = handler.read(request, response, self._config)
        marked: Iterator[tuple[Any, bool]] = ((item, isinstance(item, Request) and is_list(item)) for item in items)
        return self._state.record(request, marked, fetched_at, response.headers)

    async def _reject(self, request: Request, reason: str, detail: str) -> None:
        await asyncio.to_thread(self._state.record_reject, request, Reject(request.url, reason, detail))
        self._counts[f"rejected_{reason}"] += 1
        logger.debug(f"{request.url}: {reason} {detail}")
