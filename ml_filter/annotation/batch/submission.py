"""Submit a batch: upload each file and make it a batch exactly once, follow its status and download its results."""

from __future__ import annotations

import ssl
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, cast

import orjson
from pydantic import BaseModel, TypeAdapter, ValidationError

from ml_filter.annotation.batch.files import WRITE_AGAIN, requests_table
from ml_filter.annotation.client import Endpoint
from ml_filter.annotation.config import AnnotateConfig, BatchConfig
from ml_filter.annotation.connection import configured_endpoints
from ml_filter.annotation.failures import FORBIDDEN, OUT_OF_CREDIT, RequestFailed, failure_of
from ml_filter.annotation.responses import Answer, checked, read_answer
from ml_filter.config import Settings
from ml_filter.documents.config import SourceConfig
from ml_filter.documents.lease import alone_in
from ml_filter.documents.manifest import read_manifest
from ml_filter.errors import ConfigError, EndpointError, InputError
from ml_filter.location import Location, local_copy

if TYPE_CHECKING:
    from openai import OpenAI

SUBMITTED_NAME = "submitted.json"
ENDED_EARLY = {"failed", "expired", "cancelled"}
ENDED = {"completed", *ENDED_EARLY}
_NOT_ASKED = {"batch_expired", "batch_cancelled"}
_KEPT = "Finished work is kept; run the same command again"
_SETTLED_S = 30.0
"""How long the creation of a batch may take to show in the provider's list after it was interrupted."""


class Submission(BaseModel):
    """A file of requests and its state at the provider."""

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
    """The batch ended early, and its unanswered requests are in another file."""


_SUBMISSIONS = TypeAdapter(list[Submission])


class BatchDirectory:
    """A batch directory, held by one process; use `hold`."""

    def __init__(self, directory: str | Path, settings: Settings, confirm: Callable[[], None]) -> None:
        self.path, self.settings, self._confirm = Location(directory), settings, confirm
        self.manifest = read_manifest(directory, "batch")
        self.annotate = AnnotateConfig.model_validate(self.manifest.config["annotate"])
        self.source = SourceConfig.model_validate(self.manifest.config["source"])
        self.config = BatchConfig.model_validate(self.manifest.config["batch"])
        state = self.path / SUBMITTED_NAME
        try:
            content = state.find_bytes()
            self.submissions = self._new() if content is None else _SUBMISSIONS.validate_json(content)
        except ValidationError as error:
            raise InputError(
                f"{state} is damaged: {error.errors()[0]['msg']}. It records which batches exist at the provider; "
                "restore it from a copy, because without it all requests would be submitted, and paid for, again"
            ) from error

    def _new(self) -> list[Submission]:
        with requests_table(self.path) as db:
            files = db.execute("SELECT name, url, requests, token FROM files ORDER BY name").fetchall()
        return [
            Submission(file=name, url=url, requests=requests, remote_name=f"ml-filter-{token}-{name}")
            for name, url, requests, token in files
        ]

    def save(self) -> None:
        """Write the state of the submissions.

        Raises:
            InputError: another process has taken the directory over, and may have submitted the same requests.
        """
        self._confirm()
        (self.path / SUBMITTED_NAME).write_bytes(_SUBMISSIONS.dump_json(self.submissions, indent=1))

    @property
    def running(self) -> list[Submission]:
        """The submissions whose batches have not ended, as far as is known."""
        return [batch for batch in self.submissions if batch.batch_id is not None and batch.status not in ENDED]

    def endpoint(self) -> Endpoint:
        """The endpoint that the batch goes to: the first one configured.

        Raises:
            ConfigError: no endpoint is configured.
        """
        endpoints = configured_endpoints(self.annotate, self.settings)
        if not endpoints:
            raise ConfigError("no endpoint to submit to; set ML_FILTER_ENDPOINT, or use --endpoint when you write")
        return endpoints[0]

    @contextmanager
    def provider(self) -> Iterator[OpenAI]:
        """A client of the provider. Its errors become EndpointError."""
        import openai

        endpoint = self.endpoint()
        http = openai.DefaultHttpxClient(verify=endpoint.tls, proxy=endpoint.proxy, trust_env=False)
        key = endpoint.api_key.get_secret_value()
        client = openai.OpenAI(base_url=endpoint.base_url, api_key=key, http_client=http)
        try:
            yield client
        except openai.APIStatusError as error:
            failure = endpoint.mask(failure_of(error.status_code, error.body or error.response.text))
            if failure.code in (FORBIDDEN, OUT_OF_CREDIT):
                raise endpoint.unusable(failure) from error
            raise EndpointError(f"{endpoint.base_url}: {failure}. {_KEPT}") from error
        except openai.APIError as error:
            said, cause = endpoint.public(str(error.__cause__ or error)).rstrip("."), error.__cause__
            while cause is not None and not isinstance(cause, ssl.SSLCertVerificationError):
                cause = cause.__cause__ or cause.__context__
            if cause is not None:
                raise endpoint.certificate_problem(cause) from error
            raise EndpointError(f"{endpoint.base_url}: {said}. {_KEPT}") from error
        finally:
            client.close()

    def refresh(self) -> None:
        """Update the state of running batches from the provider."""
        if not self.running:
            return
        with self.provider() as client:
            for submission in self.running:
                assert submission.batch_id is not None
                batch = client.batches.retrieve(submission.batch_id)
                submission.status = batch.status
                submission.output_file_id, submission.error_file_id = batch.output_file_id, batch.error_file_id
                if counts := batch.request_counts:
                    submission.completed, submission.failed = counts.completed, counts.failed
                if batch.errors and batch.errors.data:
                    problems = "; ".join(f"{error.code}: {error.message}" for error in batch.errors.data)
                    submission.problem = problems[:1000]
                self.save()

    def results_of(self, submission: Submission) -> dict[str, Location]:
        """Where the result files of a batch are stored, by their ids at the provider."""
        files = {"output": submission.output_file_id, "errors": submission.error_file_id}
        folder, stem = self.path / "results", PurePath(submission.file).stem
        return {file_id: folder / f"{stem}-{kind}.jsonl" for kind, file_id in files.items() if file_id}

    def download(self) -> list[Location]:
        """The result files of all batches that have ended; each is downloaded once."""
        ended = [submission for submission in self.submissions if submission.status in ENDED]
        results = {file_id: path for submission in ended for file_id, path in self.results_of(submission).items()}
        missing = {file_id: path for file_id, path in results.items() if not path.exists()}
        if missing:
            with self.provider() as client:
                for file_id, path in missing.items():
                    _download(client, file_id, path)
        return list(results.values())


@contextmanager
def hold(directory: str | Path, settings: Settings | None) -> Iterator[BatchDirectory]:
    """A batch directory for this process alone.

    Raises:
        InputError: the directory is not a batch, is damaged, or is in use by another process.
    """
    read_manifest(directory, "batch")
    with alone_in(Location(directory)) as confirm:
        yield BatchDirectory(directory, settings or Settings(), confirm)


def _download(client: OpenAI, file_id: str, place: Location) -> None:
    import openai

    size = client.files.retrieve(file_id).bytes
    place.parent.make_directory()
    # Beside its place if that is local: it is renamed to it.
    beside = place.parent.local if place.is_local else None
    with tempfile.TemporaryDirectory(dir=beside, prefix=".download-") as scratch:
        temporary = Path(scratch) / "results"
        try:
            with client.files.with_streaming_response.content(file_id) as response:
                response.stream_to_file(temporary)
        except (openai.APIError, OSError):
            raise
        except Exception as error:  # the library does not wrap errors of the transport while a stream is read
            raise EndpointError(
                f"the download of {file_id} was interrupted ({error}); run the command again"
            ) from error
        received = temporary.stat().st_size
        if size and received != size:
            raise EndpointError(
                f"the download of {file_id} ended after {received:,} of {size:,} bytes; run the command again"
            )
        place.move_here(temporary)


def outcome_of(result: dict[str, Any], endpoint: Endpoint) -> Answer | RequestFailed | None:
    """The outcome in a line of results; None if the request was never sent to the model."""
    response, error = result.get("response"), result.get("error")
    if isinstance(error, dict) and error.get("code") in _NOT_ASKED:
        return None
    response = response if isinstance(response, dict) else {}
    status = response.get("status_code")
    try:
        body = checked(status if isinstance(status, int) else 200, {"error": error} if error else response.get("body"))
        return read_answer(body)
    except RequestFailed as failure:
        return None if failure.code == OUT_OF_CREDIT else endpoint.mask(failure)


def submit_batch(
    directory: str | Path, settings: Settings | None = None, *, resubmit: bool = False
) -> list[Submission]:
    """Upload each file and make it a batch, unless that is already done.

    With `resubmit`, also submit, in new files, the unanswered requests of batches that failed, expired or were
    cancelled; and submit again if it is unknown whether a batch was created.

    Raises:
        EndpointError: the provider rejects a request or cannot be reached, or it is unknown whether a batch exists.
    """
    with hold(directory, settings) as batch:
        if resubmit:
            _add_unanswered(batch)
        waiting = [submission for submission in batch.submissions if submission.batch_id is None]
        if waiting:
            with batch.provider() as client:
                for submission in waiting:
                    _upload(batch, submission, client)
                    _create(batch, submission, client, resubmit)
        return batch.submissions


def batch_status(
    directory: str | Path, settings: Settings | None = None, *, wait: bool = False, every_s: float = 60.0
) -> list[Submission]:
    """The status of each batch; with `wait` only once all have ended.

    Raises:
        EndpointError: the provider cannot be reached.
    """
    with hold(directory, settings) as batch:
        batch.refresh()
        while wait and batch.running:
            time.sleep(every_s)
            batch.refresh()
        return batch.submissions


def _add_unanswered(batch: BatchDirectory) -> None:
    """Write the unanswered requests of batches that ended early to new files, as new submissions."""
    batch.refresh()
    ended = [batch_ for batch_ in batch.submissions if batch_.status in ENDED_EARLY and not batch_.resubmitted]
    batch.download()
    for submission in ended:
        unanswered = _unanswered(batch, submission)
        submission.resubmitted = True
        if unanswered is not None:
            batch.submissions.append(unanswered)
        batch.save()


def _unanswered(batch: BatchDirectory, ended: Submission) -> Submission | None:
    """The requests of a file that were never sent to the model, as a new file; None if all were."""
    endpoint, answered = batch.endpoint(), set()
    for path in batch.results_of(ended).values():
        for line in path.read_bytes().splitlines():
            with suppress(orjson.JSONDecodeError, LookupError, TypeError):
                result = orjson.loads(line)
                if outcome_of(result, endpoint) is not None:
                    answered.add(result["custom_id"])
    with (batch.path / ended.file).open() as file:
        lines = [line for line in file if orjson.loads(line)["custom_id"] not in answered]
    if not lines:
        return None
    stem, _, number = PurePath(ended.file).stem.partition("-again-")
    name = f"{stem}-again-{int(number or 1) + 1}.jsonl"
    (batch.path / name).write_bytes(b"".join(lines))
    remote_name = ended.remote_name.removesuffix(ended.file) + name
    return Submission(file=name, url=ended.url, requests=len(lines), remote_name=remote_name)


def _upload(batch: BatchDirectory, submission: Submission, client: OpenAI) -> None:
    if submission.file_id is None and submission.upload_began is not None:
        # An earlier run was interrupted; the remote name is unique, so the file list shows whether the upload arrived.
        uploaded = (file for file in client.files.list(purpose="batch") if file.filename == submission.remote_name)
        if file := next(uploaded, None):
            submission.file_id = file.id
            batch.save()
    if submission.file_id is None:
        path = batch.path / submission.file
        if not path.exists():
            raise InputError(f"{path} is missing. {WRITE_AGAIN}")
        submission.upload_began = time.time()
        batch.save()  # before the request: a kill from here on makes the next run look in the file list
        with local_copy(batch.path, [submission.file]) as local, (local / submission.file).open("rb") as content:
            created = client.files.create(file=(submission.remote_name, content, "application/jsonl"), purpose="batch")
        submission.file_id = created.id
        batch.save()


def _create(batch: BatchDirectory, submission: Submission, client: OpenAI, resubmit: bool) -> None:
    import openai

    assert submission.file_id is not None
    if submission.create_began is not None:
        # An earlier run was interrupted. A batch that is just being created shows up in the list only after a while.
        time.sleep(max(submission.create_began + _SETTLED_S - time.time(), 0))
        try:
            listed = client.batches.list(limit=100)
            existing = next((entry for entry in listed if entry.input_file_id == submission.file_id), None)
        except openai.NotFoundError as error:
            if not resubmit:
                raise EndpointError(
                    f"it is unknown whether {submission.file} was submitted: an earlier run was interrupted, and the "
                    f"endpoint does not list batches. Look for a batch of file {submission.file_id} at the provider; "
                    "run again with --resubmit if no such batch exists"
                ) from error
            existing = None
        if existing:
            submission.batch_id, submission.status = existing.id, existing.status
            batch.save()
            return
    submission.create_began = time.time()
    batch.save()
    try:
        # Without retries by the library, which could create a second batch.
        created = client.with_options(max_retries=0).batches.create(
            input_file_id=submission.file_id,
            endpoint=cast("Any", submission.url),
            completion_window=cast("Any", batch.config.completion_window),
            metadata={"ml_filter": submission.remote_name},
        )
    except openai.APIStatusError as error:
        if error.status_code < 500:  # rejected, so certainly not created
            submission.create_began = None
            batch.save()
        raise
    submission.batch_id, submission.status = created.id, created.status
    batch.save()
