"""Submit a batch: upload each file and make it a batch exactly once, and follow its status."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import orjson

from ml_filter.annotation.batch.directory import ENDED_EARLY, BatchDirectory, Submission, hold, outcome_of
from ml_filter.annotation.batch.files import WRITE_AGAIN
from ml_filter.config import Settings
from ml_filter.documents.writer import write_atomically
from ml_filter.errors import EndpointError, InputError

if TYPE_CHECKING:
    from openai import OpenAI

_SETTLED_S = 30.0
"""How long the creation of a batch may take to show in the provider's list after it was interrupted."""


def submit_batch(
    directory: str | Path, settings: Settings | None = None, *, resubmit: bool = False
) -> list[Submission]:
    """Upload each file and make it a batch, unless that is already done.

    Args:
        directory: a directory written by `write_batch`.
        settings: endpoint and key of the environment; None: read from the environment.
        resubmit: also submit, in new files, the unanswered requests of batches that failed, expired or were cancelled;
            and submit again if it is unknown whether a batch was created.

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
    """The requests of a file that were never sent to the model, as a new file; None if there are none."""
    endpoint, answered = batch.endpoint(), set()
    for path in batch.results_of(ended).values():
        for line in path.read_bytes().splitlines():
            with suppress(orjson.JSONDecodeError, LookupError, TypeError):
                result = orjson.loads(line)
                if outcome_of(result, endpoint) is not None:
                    answered.add(result["custom_id"])
    with (batch.path / ended.file).open("rb") as file:
        lines = [line for line in file if orjson.loads(line)["custom_id"] not in answered]
    if not lines:
        return None
    stem, _, number = Path(ended.file).stem.partition("-again-")
    name = f"{stem}-again-{int(number or 1) + 1}.jsonl"
    write_atomically(batch.path / name, b"".join(lines))
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
        with path.open("rb") as content:
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
                    "if there is none, run again with --resubmit"
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
