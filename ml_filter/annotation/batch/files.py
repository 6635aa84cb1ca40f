"""Write the requests of a batch: JSONL files for the provider, and a table that maps their ids to documents."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import orjson
from loguru import logger

from ml_filter.annotation.annotate import annotation_plan
from ml_filter.annotation.annotator import body_to_send, constraint_for, request_for
from ml_filter.annotation.budget import Budget
from ml_filter.annotation.config import AnnotateConfig, BatchConfig, EndpointConfig
from ml_filter.annotation.ledger import Ledger, open_ledger
from ml_filter.annotation.plan import Call, OpenCalls, Plan
from ml_filter.annotation.prompts import Question
from ml_filter.annotation.responses import Answer
from ml_filter.annotation.windows import LocalTokenizer, Windows
from ml_filter.config import Settings
from ml_filter.documents.config import SourceConfig
from ml_filter.documents.manifest import Manifest, digest_of
from ml_filter.documents.output_directory import OutputDirectory
from ml_filter.errors import ConfigError, InputError
from ml_filter.location import Location, local_copy
from ml_filter.progress import progress

REQUESTS_NAME = "requests.sqlite"
WRITE_AGAIN = (
    "Write the batch again into another directory: its requests get the same ids, so results that you already have can "
    "be collected there with --results"
)
_SCHEMA = """
CREATE TABLE files (name TEXT PRIMARY KEY, url TEXT NOT NULL, requests INTEGER NOT NULL, token TEXT NOT NULL);
CREATE TABLE requests (
    custom_id TEXT PRIMARY KEY, document_id TEXT NOT NULL, text_digest TEXT NOT NULL, question TEXT NOT NULL,
    vote INTEGER NOT NULL, prompt_digest TEXT NOT NULL, window INTEGER NOT NULL, windows INTEGER NOT NULL,
    truncated INTEGER NOT NULL
) WITHOUT ROWID;
"""


@contextmanager
def requests_table(directory: Location) -> Iterator[sqlite3.Connection]:
    """The tables `files` and `requests` of a batch, read-only.

    Raises:
        InputError: the file is missing or damaged.
    """
    file = directory / REQUESTS_NAME
    if not file.exists():
        raise InputError(f"{file} is missing. {WRITE_AGAIN}")
    try:
        with (
            local_copy(directory, [REQUESTS_NAME]) as local,
            closing(sqlite3.connect(f"{(local / REQUESTS_NAME).absolute().as_uri()}?mode=ro", uri=True)) as db,
        ):
            yield db
    except sqlite3.DatabaseError as error:
        raise InputError(f"{file} is damaged: {error}. {WRITE_AGAIN}") from error


def write_batch(
    source: SourceConfig,
    annotate: AnnotateConfig,
    config: BatchConfig,
    output: str | Path,
    settings: Settings | None = None,
) -> Manifest:
    """Write the requests that `annotate_documents` would make and that are not answered in `annotate.ledger`.

    With structured output `auto` only JSON schemas are used, which the OpenAI API supports: a rejection of anything
    else would come too late.

    Raises:
        ConfigError: the model name is missing, or the text would have to be cut by a server's tokenizer.
        InputError: the source or the output directory is wrong.
    """
    annotate = _with_batch_prices(annotate, config, settings or Settings())
    if annotate.tokenizer == "server":
        raise ConfigError("batch files are written without a server: set --tokenizer to a Hub name or directory")
    if annotate.tokenizer and annotate.context_tokens is None:
        raise ConfigError(
            "batch files are written without a server: set the context length of the model (--context-tokens)"
        )
    assert annotate.model is not None
    plan = annotation_plan(source, annotate, annotate.model)
    identity = {
        "source": plan.identity["source"],
        "prompts": plan.identity["prompts"],
        "annotate": annotate.model_dump(mode="json"),
        "batch": config.model_dump(mode="json"),
    }
    with OutputDirectory(output, "batch", identity, plan.parents) as out:
        if out.manifest:
            return out.manifest
        with (
            open_ledger(annotate.ledger or str(out.scratch / "none.sqlite"), annotate) as ledger,
            _RequestFiles(out, config) as files,
        ):
            budget = Budget(annotate, ledger.tokens_used(plan.question_digests))
            asyncio.run(_write(plan, ledger, budget, files))
        if budget.is_spent:
            logger.warning(
                f"the budget of {budget.describe()} has room for {files.counts['requests']:,} requests, each counted "
                "with all tokens that it may use; the other documents stay open"
            )
        return out.finish([], files.counts)


def _with_batch_prices(annotate: AnnotateConfig, config: BatchConfig, settings: Settings) -> AnnotateConfig:
    model = annotate.model or settings.model
    if not model:
        raise ConfigError("a batch needs a model name: give --model or set ML_FILTER_MODEL")
    prices = annotate.model_dump(include={"usd_per_million_prompt_tokens", "usd_per_million_completion_tokens"})
    cheaper = {name: price * config.price_share for name, price in prices.items() if price is not None}
    return annotate.model_copy(update={"model": model, **cheaper})


async def _write(plan: Plan, ledger: Ledger, budget: Budget, files: _RequestFiles) -> None:
    config = plan.config
    tokenizer = LocalTokenizer(config.tokenizer) if config.tokenizer else None
    endpoint = next(iter(config.endpoints), None)
    model = endpoint.model if isinstance(endpoint, EndpointConfig) and endpoint.model else plan.annotator

    async def windows_for(question: Question) -> Windows:
        return await Windows.fit(config, question, tokenizer, config.context_tokens)

    with progress("Writing requests", plan.total_votes) as bar:
        async for calls in OpenCalls(plan, ledger).by_vote(windows_for):
            for call in calls:
                reserved = await budget.reserve(call.question, call.piece)
                if reserved is None:
                    return
                budget.settle(reserved, 0, Answer(text=""))  # without a report, so all of it counts as used
                path, body = request_for(call.question, call.piece, call.key.vote, config, tokenizer)
                constraint = constraint_for(call.question, config)
                if config.structured == "auto" and "response_format" not in constraint:
                    constraint = {}
                files.add(call, f"/v1/{path}", body_to_send(model, body, constraint, config))
            bar.advance()


class _RequestFiles:
    """Request files, each for one API path and within the limits, and the table of their requests."""

    def __init__(self, out: OutputDirectory, config: BatchConfig) -> None:
        self.out, self.config = out, config
        self.counts: Counter[str] = Counter(requests=0, files=0)
        self._files: dict[str, tuple[IO[bytes], int]] = {}
        self._table = out.scratch / REQUESTS_NAME
        self._token = uuid.uuid4().hex

    def __enter__(self) -> _RequestFiles:
        self._table.unlink(missing_ok=True)
        self._db = sqlite3.connect(self._table, isolation_level=None)
        self._db.executescript(f"PRAGMA journal_mode = OFF; {_SCHEMA} BEGIN;")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for url in list(self._files):
            self._close(url)
        self._db.execute("COMMIT")
        self._db.close()
        if kind is None:
            self.out.put_file(self._table, REQUESTS_NAME)

    def add(self, call: Call, url: str, body: dict[str, Any]) -> None:
        """Write a request. Its id is the same whenever it is written."""
        # 32 hex digits: some providers allow at most 64 letters, digits, - and _.
        custom_id = digest_of([*call.key, call.window])[:32]
        line = orjson.dumps({"custom_id": custom_id, "method": "POST", "url": url, "body": body}) + b"\n"
        file, requests = self._files.get(url) or self._open()
        if requests >= self.config.max_requests or (requests and file.tell() + len(line) > self.config.max_bytes):
            self._close(url)
            file, requests = self._open()
        file.write(line)
        self._files[url] = file, requests + 1
        row = (custom_id, *call.key, call.question.digest, call.window, call.windows, call.truncated)
        self._db.execute("INSERT INTO requests VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
        self.counts["requests"] += 1

    def _open(self) -> tuple[IO[bytes], int]:
        file = (self.out.scratch / f"requests-{self.counts['files']:05d}.jsonl").open("wb")
        self.counts["files"] += 1
        return file, 0

    def _close(self, url: str) -> None:
        file, requests = self._files.pop(url)
        file.flush()
        os.fsync(file.fileno())
        file.close()
        path = Path(file.name)
        self.out.put_file(path, path.name)
        self._db.execute("INSERT INTO files VALUES (?, ?, ?, ?)", (path.name, url, requests, self._token))
