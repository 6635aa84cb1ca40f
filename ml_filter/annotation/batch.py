"""Annotate through OpenAI batch files: write the requests, submit them, collect the answers.

A batch directory holds `requests-*.jsonl`; `requests.sqlite`, which says what each `custom_id` asks; `submitted.json`,
what is known of each file at the provider; and `results/`. Answers are matched by `custom_id`, never by position, and
go through the ledger into a normal annotations directory. Nothing needs a provider but submitting: vLLM's
`run_batch` reads the same files and writes results that `collect` takes.

Delivery: each file is uploaded and made a batch once. Both intentions are on disk before the request; after a kill in
between, the provider's own lists of files and batches say whether it arrived. What a batch that ended early left
unanswered is submitted again when asked to, and only that.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, cast

import orjson
from filelock import FileLock, Timeout
from loguru import logger
from pydantic import BaseModel, SecretStr, TypeAdapter, ValidationError

from ml_filter.annotation.annotate import Call, Run, answers_directory, configured_endpoints, prepare, run_to_the_end
from ml_filter.annotation.budget import reported
from ml_filter.annotation.client import Endpoint, RequestFailed, failure_of
from ml_filter.annotation.config import AnnotateConfig, BatchConfig, EndpointConfig
from ml_filter.annotation.judge import body_to_send, constraint_for, read_answer, request_for
from ml_filter.annotation.ledger import Key, Ledger
from ml_filter.annotation.parsing import Answer, AnswerError
from ml_filter.annotation.prompts import Question
from ml_filter.annotation.windows import LocalTokenizer, Windows
from ml_filter.config import Settings
from ml_filter.documents.config import SourceConfig
from ml_filter.documents.manifest import Manifest, digest_of, read_manifest
from ml_filter.documents.output_directory import OutputDirectory
from ml_filter.documents.readers import known_rows
from ml_filter.documents.writer import write_atomically
from ml_filter.errors import ConfigError, EndpointError, InputError, TooManyFailures
from ml_filter.progress import progress

if TYPE_CHECKING:
    from openai import OpenAI

REQUESTS_NAME = "requests.sqlite"
SUBMITTED_NAME = "submitted.json"
_ENDED_EARLY = {"failed", "expired", "cancelled"}
ENDED = {"completed", *_ENDED_EARLY}
_NOT_ASKED = {"batch_expired", "batch_cancelled"}
_SETTLED_S = 30.0
"""A batch whose creation was cut off is looked for once this much time has passed."""
_WRITE_AGAIN = (
    "Write the batch again into another directory: its requests get the same ids, so results that are here already can "
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


class Submission(BaseModel):
    """A file of requests and what is known of it at the provider."""

    file: str
    url: str
    requests: int
    remote_name: str
    upload_began: float | None = None
    file_id: str | None = None
    create_began: float | None = None
    batch_id: str | None = None
    status: str = "not submitted"
    completed: int = 0
    failed: int = 0
    output_file_id: str | None = None
    error_file_id: str | None = None
    problem: str | None = None
    resubmitted: bool = False
    """It ended early, and what it left unanswered is in another file."""


_SUBMISSIONS = TypeAdapter(list[Submission])


# --- Write -----------------------------------------------------------------------------------------------------------


def write_batch(
    source: SourceConfig,
    annotate: AnnotateConfig,
    config: BatchConfig,
    output: str | Path,
    settings: Settings | None = None,
) -> Manifest:
    """Write the requests that `annotate_documents` would make and whose answers are not in `annotate.ledger`.

    Of structured output `auto` takes only what the OpenAI API knows (JSON schemas), since a refusal comes too late.

    Raises:
        ConfigError: no model is named, or text is to be cut by a server's tokenizer.
        InputError: the source or the output directory is wrong.
    """
    annotate = at_batch_prices(annotate, config, settings or Settings())
    if annotate.tokenizer == "server":
        raise ConfigError("batch files are written without a server: give --tokenizer a Hub name or directory")
    if annotate.tokenizer and annotate.context_tokens is None:
        raise ConfigError("batch files are written without a server: say how long the model's context is "
                          "(--context-tokens)")  # fmt: skip
    assert annotate.model is not None
    run, made_by, parents = prepare(_Writer, source, annotate, annotate.model)
    identity = {
        "source": made_by["source"],
        "prompts": made_by["prompts"],
        "annotate": annotate.model_dump(mode="json"),
        "batch": config.model_dump(mode="json"),
    }
    with OutputDirectory(output, "batch", identity, parents) as out:
        if out.manifest:
            return out.manifest
        if not out.is_local:
            raise InputError(f"{output}: batch files need a local directory")
        with (
            Ledger(Path(annotate.ledger or out.scratch / "none.sqlite")) as ledger,
            _RequestFiles(out, config) as files,
        ):
            run.open(ledger)
            asyncio.run(run.write(files))
        if run.budget.is_spent:
            logger.warning(
                f"the budget of {run.budget.describe()} has room for {files.counts['requests']:,} requests, each "
                "counted with all tokens it may write; the other documents stay open"
            )
        return out.finish([], files.counts)


def at_batch_prices(annotate: AnnotateConfig, config: BatchConfig, settings: Settings) -> AnnotateConfig:
    """The settings with the model's name filled in and the prices of a batch.

    Raises:
        ConfigError: no model is named.
    """
    model = annotate.model or settings.model
    if not model:
        raise ConfigError("a batch needs a model name: give --model or set ML_FILTER_MODEL")
    prices = ("usd_per_million_prompt_tokens", "usd_per_million_completion_tokens")
    known = {name: price for name in prices if (price := getattr(annotate, name)) is not None}
    cheaper = {name: price * config.price_share for name, price in known.items()}
    return annotate.model_copy(update={"model": model, **cheaper})


class _Writer(Run):
    """Writes the calls that are open instead of making them."""

    async def write(self, files: _RequestFiles) -> None:
        tokenizer = LocalTokenizer(self.config.tokenizer) if self.config.tokenizer else None
        first = next(iter(self.config.endpoints), None)
        model = first.model if isinstance(first, EndpointConfig) and first.model else self.annotator
        windows: dict[str, Windows] = {}
        rows = known_rows(self.shards)
        with progress("Writing requests", None if rows is None else rows * self.votes * len(self.criteria)) as bar:
            for prompt, key, text, statuses in self._open():
                if prompt.digest not in windows:
                    context = self.config.context_tokens
                    windows[prompt.digest] = await Windows.of(self.config, prompt, tokenizer, context)
                async for call in self._calls(windows[prompt.digest], key, text, statuses):
                    reserved = await self.budget.reserve(prompt, call.piece)
                    if reserved is None:
                        break
                    self.budget.settle(reserved, 0, Answer(text=""))
                    path, body = request_for(prompt, call.piece, key.vote, self.config, tokenizer)
                    files.add(call, f"/v1/{path}", body_to_send(model, body, self._constraint(prompt), self.config))
                bar.advance()
                if self.budget.is_spent:
                    break

    def _constraint(self, prompt: Question) -> dict[str, Any]:
        constraint = constraint_for(prompt, self.config)
        return constraint if self.config.structured == "on" or "response_format" in constraint else {}


class _RequestFiles:
    """Files of requests for one API path each, and the table of what they ask."""

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
        """Write a request; its id is the same each time it is written."""
        # 32 hex digits: some providers take at most 64 letters, digits, - and _.
        custom_id = digest_of([*call.key, call.window])[:32]
        line = orjson.dumps({"custom_id": custom_id, "method": "POST", "url": url, "body": body}) + b"\n"
        file, requests = self._files.get(url) or self._new(url)
        if requests >= self.config.max_requests or (requests and file.tell() + len(line) > self.config.max_bytes):
            self._close(url)
            file, requests = self._new(url)
        file.write(line)
        self._files[url] = file, requests + 1
        row = (custom_id, *call.key, call.prompt.digest, call.window, call.windows, call.truncated)
        self._db.execute("INSERT INTO requests VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
        self.counts["requests"] += 1

    def _new(self, url: str) -> tuple[IO[bytes], int]:
        file = (self.out.scratch / f"requests-{self.counts['files']:05d}.jsonl").open("wb")
        self.counts["files"] += 1
        return file, 0

    def _close(self, url: str) -> None:
        file, requests = self._files.pop(url)
        file.flush()
        os.fsync(file.fileno())
        file.close()
        made = Path(file.name)
        self.out.put_file(made, made.name)
        self._db.execute("INSERT INTO files VALUES (?, ?, ?, ?)", (made.name, url, requests, self._token))


# --- Submit and watch ------------------------------------------------------------------------------------------------


class _Batch:
    """A written batch directory, held by one process."""

    def __init__(self, directory: str | Path) -> None:
        self.path = Path(directory)
        self.manifest = read_manifest(directory, "batch")
        self.annotate = AnnotateConfig.model_validate(self.manifest.config["annotate"])
        self.source = SourceConfig.model_validate(self.manifest.config["source"])
        self.config = BatchConfig.model_validate(self.manifest.config["batch"])
        state = self.path / SUBMITTED_NAME
        try:
            self.submissions = _SUBMISSIONS.validate_json(state.read_bytes()) if state.exists() else self._none_yet()
        except ValidationError as error:
            raise InputError(
                f"{state} is damaged: {error.errors()[0]['msg']}. It says which batches the provider has, so put it "
                "back from a copy: without it all requests would be submitted, and paid for, again"
            ) from error

    def _none_yet(self) -> list[Submission]:
        with _table(self.path) as db:
            files = db.execute("SELECT name, url, requests, token FROM files ORDER BY name").fetchall()
        return [
            Submission(file=name, url=url, requests=requests, remote_name=f"ml-filter-{token}-{name}")
            for name, url, requests, token in files
        ]

    def save(self) -> None:
        """Put what is known on disk."""
        write_atomically(self.path / SUBMITTED_NAME, _SUBMISSIONS.dump_json(self.submissions, indent=1))

    def endpoint(self, settings: Settings) -> Endpoint:
        """Where the batch goes: the first endpoint."""
        endpoints = configured_endpoints(self.annotate, settings)
        if not endpoints:
            raise ConfigError("there is no endpoint to submit to; set ML_FILTER_ENDPOINT, or give --endpoint to write")
        return endpoints[0]


@contextmanager
def _held(directory: str | Path) -> Iterator[_Batch]:
    read_manifest(directory, "batch")
    lock = FileLock(Path(directory) / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(f"{directory} is in use by another process; wait for it") from None
    try:
        yield _Batch(directory)
    finally:
        lock.release()


@contextmanager
def _table(directory: Path) -> Iterator[sqlite3.Connection]:
    path = directory / REQUESTS_NAME
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as db:
            yield db
    except sqlite3.DatabaseError as error:
        raise InputError(f"{path} is missing or damaged: {error}. {_WRITE_AGAIN}") from error


@contextmanager
def _provider(endpoint: Endpoint) -> Iterator[OpenAI]:
    """A client of the provider, whose errors say what to do."""
    import openai

    client = openai.OpenAI(base_url=endpoint.base_url, api_key=endpoint.api_key.get_secret_value())
    try:
        yield client
    except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
        raise EndpointError(
            f"{endpoint.base_url} refuses the key; set {endpoint.key_name or 'ML_FILTER_API_KEY'}"
        ) from error
    except openai.APIError as error:
        said = endpoint.public(str(error)).rstrip(".")
        raise EndpointError(
            f"{endpoint.base_url}: {said}. What was done is kept; run the same command again"
        ) from error
    finally:
        client.close()


def submit_batch(
    directory: str | Path, settings: Settings | None = None, *, resubmit: bool = False
) -> list[Submission]:
    """Upload each file and make it a batch, unless that is done.

    Args:
        directory: made by `write_batch`.
        settings: endpoint and key of the environment.
        resubmit: submit again where it is not known whether a batch was made, and what batches that failed, expired
            or were cancelled left unanswered, in files of their own.

    Raises:
        EndpointError: the provider refuses, cannot be reached, or cannot say whether a batch was made.
    """
    settings = settings or Settings()
    with _held(directory) as batch:
        if resubmit:
            _take_up(batch, settings)
        waiting = [one for one in batch.submissions if one.batch_id is None]
        if waiting:
            with _provider(batch.endpoint(settings)) as client:
                for submission in waiting:
                    _upload(batch, submission, client)
                    _create(batch, submission, client, resubmit)
        return batch.submissions


def _take_up(batch: _Batch, settings: Settings) -> None:
    """Write what batches that ended early left unanswered into new files, to be submitted."""
    _refresh(batch, settings)
    ended = [one for one in batch.submissions if one.status in _ENDED_EARLY and not one.resubmitted]
    _download(batch, settings)
    for one in ended:
        rest = _rest_of(batch, one, settings)
        one.resubmitted = True
        if rest is not None:
            batch.submissions.append(rest)
        batch.save()


def _rest_of(batch: _Batch, ended: Submission, settings: Settings) -> Submission | None:
    """The requests of a file that were never put to the model, as a new file; None where there are none."""
    endpoint, answered = batch.endpoint(settings), set()
    for _, path in _results_of(batch, ended):
        for line in path.read_bytes().splitlines():
            with suppress(orjson.JSONDecodeError, LookupError, TypeError):
                result = orjson.loads(line)
                if _outcome(result, endpoint) is not None:
                    answered.add(result["custom_id"])
    with (batch.path / ended.file).open("rb") as file:
        rest = [line for line in file if orjson.loads(line)["custom_id"] not in answered]
    if not rest:
        return None
    stem, _, nth = Path(ended.file).stem.partition("-again-")
    name = f"{stem}-again-{int(nth or 1) + 1}.jsonl"
    write_atomically(batch.path / name, b"".join(rest))
    remote_name = ended.remote_name.removesuffix(ended.file) + name
    return Submission(file=name, url=ended.url, requests=len(rest), remote_name=remote_name)


def _upload(batch: _Batch, submission: Submission, client: OpenAI) -> None:
    if submission.file_id is None and submission.upload_began is not None:
        names = (found for found in client.files.list(purpose="batch") if found.filename == submission.remote_name)
        if found := next(names, None):
            submission.file_id = found.id
            batch.save()
    if submission.file_id is None:
        if not (batch.path / submission.file).exists():
            raise InputError(f"{batch.path / submission.file} is missing. {_WRITE_AGAIN}")
        submission.upload_began = time.time()
        batch.save()
        with (batch.path / submission.file).open("rb") as file:
            made = client.files.create(file=(submission.remote_name, file, "application/jsonl"), purpose="batch")
        submission.file_id = made.id
        batch.save()


def _create(batch: _Batch, submission: Submission, client: OpenAI, resubmit: bool) -> None:
    import openai

    assert submission.file_id is not None
    if submission.create_began is not None:
        time.sleep(max(submission.create_began + _SETTLED_S - time.time(), 0))
        try:
            made = (found for found in client.batches.list(limit=100) if found.input_file_id == submission.file_id)
            found = next(made, None)
        except openai.NotFoundError as error:
            if not resubmit:
                raise EndpointError(
                    f"it is not certain whether {submission.file} was submitted: an earlier run was cut off, and "
                    f"the endpoint does not list batches. Look for a batch of file {submission.file_id} at the "
                    "provider; if there is none, run again with --resubmit"
                ) from error
            found = None
        if found:
            submission.batch_id, submission.status = found.id, found.status
            batch.save()
            return
    submission.create_began = time.time()
    batch.save()
    try:
        # One try: the library's own second one could make a second batch.
        new = client.with_options(max_retries=0).batches.create(
            input_file_id=submission.file_id,
            endpoint=cast("Any", submission.url),
            completion_window=cast("Any", batch.config.completion_window),
            metadata={"ml_filter": submission.remote_name},
        )
    except openai.APIStatusError as error:
        if error.status_code < 500:  # refused for certain
            submission.create_began = None
            batch.save()
        raise
    submission.batch_id, submission.status = new.id, new.status
    batch.save()


def batch_status(
    directory: str | Path, settings: Settings | None = None, *, wait: bool = False, every_s: float = 60.0
) -> list[Submission]:
    """What the provider says of each batch that has not ended; `wait` until all have.

    Raises:
        EndpointError: the provider cannot be reached.
    """
    settings = settings or Settings()
    with _held(directory) as batch:
        while _running(batch.submissions):
            _refresh(batch, settings)
            if not wait or not _running(batch.submissions):
                break
            time.sleep(every_s)
        return batch.submissions


def _running(submissions: Sequence[Submission]) -> list[Submission]:
    return [one for one in submissions if one.batch_id is not None and one.status not in ENDED]


def _refresh(batch: _Batch, settings: Settings) -> None:
    if not _running(batch.submissions):
        return
    with _provider(batch.endpoint(settings)) as client:
        for submission in _running(batch.submissions):
            assert submission.batch_id is not None
            now = client.batches.retrieve(submission.batch_id)
            submission.status = now.status
            submission.output_file_id, submission.error_file_id = now.output_file_id, now.error_file_id
            if now.request_counts:
                submission.completed, submission.failed = now.request_counts.completed, now.request_counts.failed
            if now.errors and now.errors.data:
                submission.problem = "; ".join(f"{e.code}: {e.message}" for e in now.errors.data)[:1000]
            batch.save()


# --- Collect ---------------------------------------------------------------------------------------------------------


def collect_batch(
    directory: str | Path,
    output: str | Path,
    *,
    results: Sequence[Path] = (),
    max_failed_share: float | None = None,
    settings: Settings | None = None,
) -> Manifest:
    """Put the answers of a batch into the ledger and write the annotations.

    Args:
        directory: made by `write_batch`.
        output: an annotations directory, as `annotate_documents` makes; with the same settings that one finishes what
            the batch left open.
        results: files of results that are here already; otherwise they are fetched from the provider.
        max_failed_share: in the place of the configuration's.
        settings: endpoint and key of the environment.

    Raises:
        TooManyFailures: requests are open (the answers are in the ledger all the same), or too large a share failed.
        EndpointError: the provider cannot be reached, or a download was cut off.
        InputError: a prompt has changed since, nothing was submitted, or a file holds no result of this batch.
    """
    settings = settings or Settings()
    with _held(directory) as batch:
        assert batch.annotate.model is not None
        tolerated = batch.annotate.max_failed_share if max_failed_share is None else max_failed_share
        annotate = batch.annotate.model_copy(update={"max_failed_share": tolerated})
        run, made_by, parents = prepare(_Collector, batch.source, annotate, batch.annotate.model)
        if made_by["prompts"] != batch.manifest.config["prompts"]:
            raise InputError(f"a prompt has changed since {directory} was written; put it back or write a new batch")
        if not results:
            if batch.submissions and all(one.batch_id is None for one in batch.submissions):
                raise InputError(
                    f"{directory} has not been submitted: run ml-filter batch submit {directory}, or give the files of "
                    "results that are here with --results"
                )
            _refresh(batch, settings)
            results = _download(batch, settings)
        run.batch, run.results = batch, results
        with answers_directory(output, "annotations", made_by, parents) as out:
            return run_to_the_end(out, settings, run)


def batch_usd(directory: str | Path, made: Manifest) -> float | None:
    """What annotations cost at a batch's prices; None where they are not known."""
    annotate = AnnotateConfig.model_validate(read_manifest(directory).config["annotate"])
    return annotate.usd(made.counts["prompt_tokens"], made.counts["completion_tokens"])


def _download(batch: _Batch, settings: Settings) -> list[Path]:
    """The files of results of the batches that have ended, each fetched once."""
    ended = [submission for submission in batch.submissions if submission.status in ENDED]
    wanted = [found for submission in ended for found in _results_of(batch, submission)]
    missing = [(file_id, path) for file_id, path in wanted if not path.exists()]
    if missing:
        with _provider(batch.endpoint(settings)) as client:
            for file_id, path in missing:
                _fetch(client, file_id, path)
    return [path for _, path in wanted]


def _results_of(batch: _Batch, submission: Submission) -> list[tuple[str, Path]]:
    """The provider's files of results of a batch, and where they go."""
    files = {"output": submission.output_file_id, "errors": submission.error_file_id}
    folder, stem = batch.path / "results", Path(submission.file).stem
    return [(file_id, folder / f"{stem}-{kind}.jsonl") for kind, file_id in files.items() if file_id]


def _fetch(client: OpenAI, file_id: str, path: Path) -> None:
    import openai

    path.parent.mkdir(exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    size = client.files.retrieve(file_id).bytes
    try:
        with client.files.with_streaming_response.content(file_id) as response:
            response.stream_to_file(temporary)
    except (openai.APIError, OSError):
        raise
    except Exception as error:  # of the transport, which the library lets through while a stream is read
        raise EndpointError(f"the download of {file_id} was cut off ({error}); run the command again") from error
    got = temporary.stat().st_size
    if size and got != size:
        raise EndpointError(f"the download of {file_id} ended after {got:,} of {size:,} bytes; run the command again")
    os.replace(temporary, path)


class _Collector(Run):
    """Takes the answers of a batch instead of asking."""

    again = "run ml-filter annotate on the same output"
    batch: _Batch
    results: Sequence[Path]

    def ask_all(self, settings: Settings) -> None:
        """Record the results that answer an open request."""
        key = settings.api_key or SecretStr("none")
        with suppress(ConfigError):  # results may repeat the key of where the batch went, if that is known here
            key = self.batch.endpoint(settings).api_key
        self.endpoint = Endpoint("the batch", self.annotator, key)
        self.prompts = {prompt.digest: prompt for of in self.criteria.values() for prompt in of.values()}
        self.lines: Counter[str] = Counter()
        with _table(self.batch.path) as db, progress("Reading results", self.batch.manifest.counts["requests"]) as bar:
            for path in self.results:
                if not path.is_file():
                    raise InputError(f"{path} is no file of results")
                known = self.lines["known"]
                with path.open("rb") as file:
                    for line in file:
                        self._take(line, db)
                        bar.advance()
                if self.lines["known"] == known and path.stat().st_size:
                    raise InputError(f"{path} holds no result of a request in {self.batch.path}")
        odd = {name: self.lines[name] for name in ("unreadable", "unknown") if self.lines[name]}
        if odd:
            logger.warning(f"Lines left out: {', '.join(f'{name} {count:,}' for name, count in odd.items())}")
        if self.lines["repeated"]:
            logger.info(f"Lines whose request had its answer already: {self.lines['repeated']:,}")

    def _take(self, line: bytes, db: sqlite3.Connection) -> None:
        try:
            result = orjson.loads(line)
            custom_id = result["custom_id"]
        except (orjson.JSONDecodeError, LookupError, TypeError):
            self.lines["unreadable"] += 1
            return
        row = db.execute("SELECT * FROM requests WHERE custom_id = ?", (custom_id,)).fetchone()
        if row is None:
            self.lines["unknown"] += 1
            return
        self.lines["known"] += 1
        _, document_id, text_digest, question, vote, digest, window, windows, truncated = row
        key = Key(document_id, text_digest, question, vote)
        call = Call(key, self.prompts[digest], "", window, windows, bool(truncated))
        outcome = _outcome(result, self.endpoint)
        status = self.ledger.statuses(key).get(window, "open")
        if outcome is None:
            self.lines["not_asked"] += 1
        elif status == "open" or (status == "failed" and self._is_good(outcome, call)):
            self.record(call, outcome, reported(outcome))
        else:
            self.lines["repeated"] += 1

    def _is_good(self, outcome: Answer | RequestFailed, call: Call) -> bool:
        try:
            return isinstance(outcome, Answer) and bool(self.read(outcome, call))
        except AnswerError:
            return False

    def check(self, counts: Counter[str], output: str) -> None:
        """Whether every request has its answer; raises TooManyFailures, also as `Run.check`."""
        if counts["open"]:
            all_ = self.batch.submissions
            running, unsent = _running(all_), [one for one in all_ if one.batch_id is None]
            why = [f"{len(running):,} of {len(all_):,} batches still run"] if running else []
            if 0 < len(unsent) < len(all_):
                why.append(f"{len(unsent):,} of {len(all_):,} are not submitted (ml-filter batch submit)")
            why += (
                [f"{self.lines['not_asked']:,} requests expired or were cancelled"] if self.lines["not_asked"] else []
            )
            early = [one for one in all_ if one.status in _ENDED_EARLY and not one.resubmitted]
            why += [f"{one.file}: {one.problem}" for one in early if one.problem]
            resubmit = f", submit the rest of {len(early):,} batches again (ml-filter batch submit --resubmit)"
            raise TooManyFailures(
                f"{counts['open']:,} answers are open{''.join(f'; {reason}' for reason in why)}. Those that came are "
                f"in the ledger of {output}. Collect again when there are more results{resubmit if early else ''}, or "
                f"let ml-filter annotate finish {output} with the same settings"
            )
        super().check(counts, output)


def _outcome(result: dict[str, Any], endpoint: Endpoint) -> Answer | RequestFailed | None:
    """What a line of results says; None where the request was never put to the model."""
    response, error = result.get("response") or {}, result.get("error")
    if isinstance(error, dict) and error.get("code") in _NOT_ASKED:
        return None
    status, body = response.get("status_code"), response.get("body")
    if error or not isinstance(status, int) or status >= 400:
        failed = failure_of(endpoint, status if isinstance(status, int) else 500, orjson.dumps(error or body), None)
        return failed if isinstance(failed, RequestFailed) else RequestFailed("bad_request", str(failed), refused=True)
    try:
        return read_answer(cast("dict[str, Any]", body))
    except (AttributeError, LookupError, TypeError, ValueError) as broken:
        return RequestFailed("malformed_answer", f"{type(broken).__name__}: {broken}")
