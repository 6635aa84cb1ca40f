"""Collect a batch: put the answers of its results into the ledger and write annotations."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import orjson
from loguru import logger
from pydantic import SecretStr

from ml_filter.annotation.annotate import annotation_plan
from ml_filter.annotation.batch.files import requests_table
from ml_filter.annotation.batch.submission import ENDED_EARLY, BatchDirectory, hold, outcome_of
from ml_filter.annotation.budget import Budget, reported
from ml_filter.annotation.client import Endpoint
from ml_filter.annotation.config import AnnotateConfig
from ml_filter.annotation.failures import RequestFailed
from ml_filter.annotation.grammar import AnswerError
from ml_filter.annotation.ledger import Key, Ledger
from ml_filter.annotation.plan import Call, Plan
from ml_filter.annotation.responses import Answer
from ml_filter.annotation.run import AnswerSource, Recorder, run
from ml_filter.config import Settings
from ml_filter.documents.manifest import Manifest, read_manifest
from ml_filter.errors import ConfigError, InputError, TooManyFailures
from ml_filter.location import Location, local_copy
from ml_filter.progress import progress


def collect_batch(
    directory: str | Path,
    output: str | Path,
    *,
    results: Sequence[str | Path] = (),
    max_failed_share: float | None = None,
    settings: Settings | None = None,
) -> Manifest:
    """Put the answers of a batch into the ledger and write the annotations.

    Args:
        output: an annotations directory. `annotate_documents` with the same settings can finish what is open in it.
        results: files of results; without any, the results are downloaded from the provider.
        max_failed_share: overrides the value in the configuration.

    Raises:
        TooManyFailures: requests are still open, or too many failed. The answers that came are in the ledger.
        EndpointError: the provider cannot be reached, or a download was interrupted.
        InputError: a prompt has changed, the batch was not submitted, or a file has no results of this batch.
    """
    with hold(directory, settings) as batch:
        assert batch.annotate.model is not None
        annotate = batch.annotate
        if max_failed_share is not None:
            annotate = annotate.model_copy(update={"max_failed_share": max_failed_share})
        plan = annotation_plan(batch.source, annotate, batch.annotate.model)
        if plan.identity["prompts"] != batch.manifest.config["prompts"]:
            raise InputError(f"a prompt has changed since {directory} was written; restore it, or write a new batch")
        if not results:
            if batch.submissions and all(submission.batch_id is None for submission in batch.submissions):
                raise InputError(
                    f"{directory} has not been submitted: run ml-filter batch submit {directory}, or use --results "
                    "with local files of results"
                )
            batch.refresh()
            results = [str(place) for place in batch.download()]
        return run(plan, _BatchResults(batch, [Location(result) for result in results]), output)


def batch_usd(directory: str | Path, annotations: Manifest) -> float | None:
    """The cost of annotations at batch prices; None if the prices are unknown."""
    annotate = AnnotateConfig.model_validate(read_manifest(directory).config["annotate"])
    return annotate.usd(annotations.counts["prompt_tokens"], annotations.counts["completion_tokens"])


class _BatchResults(AnswerSource):
    """The results of a batch as the source of answers."""

    retry_hint = "run ml-filter annotate on the same output"

    def __init__(self, batch: BatchDirectory, results: Sequence[Location]) -> None:
        self.batch, self.results = batch, results
        self.lines: Counter[str] = Counter()

    @property
    def recorded(self) -> int:
        """How many answers it has put into the ledger."""
        return self.lines["new"]

    def fill(self, plan: Plan, ledger: Ledger, budget: Budget) -> None:
        """Record the results that answer an open request."""
        key = self.batch.settings.api_key or SecretStr("none")
        with suppress(ConfigError):  # results may repeat the key of the endpoint; it is removed from them if known here
            key = self.batch.endpoint().api_key
        self.endpoint, self.recorder = (
            Endpoint("the batch", plan.annotator, key),
            Recorder(plan, ledger, self.retry_hint),
        )
        self.questions = {question.digest: question for question in plan.task.questions}
        with (
            requests_table(self.batch.path) as db,
            progress("Reading results", self.batch.manifest.counts["requests"]) as bar,
        ):
            for place in self.results:
                if not place.exists() or place.fs.isdir(place.path):
                    raise InputError(f"{place} is not a file of results")
                matched, is_empty = self.lines["matched"], True
                with local_copy(place.parent, [place.name]) as local, (local / place.name).open("rb") as file:
                    for line in file:
                        is_empty = False
                        self.lines[self._take(line, db)] += 1
                        bar.advance()
                if self.lines["matched"] == matched and not is_empty:
                    raise InputError(f"{place} has no result of a request in {self.batch.path}")
        ignored = [f"{name} {self.lines[name]:,}" for name in ("unreadable", "unknown") if self.lines[name]]
        if ignored:
            logger.warning(f"Ignored lines of results: {', '.join(ignored)}")
        if self.lines["repeated"]:
            logger.info(f"Lines of results for requests that were already answered: {self.lines['repeated']:,}")

    def _take(self, line: bytes, db: sqlite3.Connection) -> str:
        """Record a line of results; returns what it was: `unreadable`, `unknown`, `not_asked`, `repeated`, `new`."""
        try:
            result = orjson.loads(line)
            custom_id = result["custom_id"]
        except (orjson.JSONDecodeError, LookupError, TypeError):
            return "unreadable"
        row = db.execute("SELECT * FROM requests WHERE custom_id = ?", (custom_id,)).fetchone()
        if row is None:
            return "unknown"
        self.lines["matched"] += 1
        _, document_id, text_digest, question, vote, digest, window, windows, truncated = row
        key = Key(document_id, text_digest, question, vote)
        call = Call(key, self.questions[digest], "", window, windows, bool(truncated))
        outcome = outcome_of(result, self.endpoint)
        if outcome is None:
            return "not_asked"
        status = self.recorder.ledger.statuses(key).get(window, "open")
        # Several lines may answer a request: a usable answer replaces a failed one and is never replaced.
        if status == "open" or (status == "failed" and self._is_usable(outcome, call)):
            self.recorder.ledger.wait_for_room()
            self.recorder.record(call, outcome, reported(outcome))
            return "new"
        return "repeated"

    def _is_usable(self, outcome: Answer | RequestFailed, call: Call) -> bool:
        try:
            return isinstance(outcome, Answer) and bool(self.recorder.plan.task.read(outcome, call))
        except AnswerError:
            return False

    def check_open(self, open_votes: int, output: str, ledger: Location) -> None:
        """Raise TooManyFailures, which says why votes are open and what to do."""
        submissions = self.batch.submissions
        running, unsent = len(self.batch.running), sum(submission.batch_id is None for submission in submissions)
        early = [batch for batch in submissions if batch.status in ENDED_EARLY and not batch.resubmitted]
        reasons = [f"{running:,} of {len(submissions):,} batches are still running"] if running else []
        if 0 < unsent < len(submissions):
            reasons.append(f"{unsent:,} of {len(submissions):,} are not submitted (ml-filter batch submit)")
        if self.lines["not_asked"]:
            reasons.append(f"{self.lines['not_asked']:,} requests expired, were cancelled or found no credit")
        reasons += [f"{batch.file}: {batch.problem}" for batch in early if batch.problem]
        resubmit = ""
        if early:
            resubmit = f" submit the rest of {len(early):,} batches again (ml-filter batch submit --resubmit),"
        raise TooManyFailures(
            f"{open_votes:,} answers are open{''.join(f'; {reason}' for reason in reasons)}. The others are in the "
            f"ledger {ledger}. Collect again when there are more results,{resubmit} or let ml-filter annotate "
            f"finish {output} with the same settings"
        )
