"""One run of a command that asks an LLM: get the open answers, collect the output and finish its directory."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Protocol

from ml_filter.annotation.budget import Budget
from ml_filter.annotation.collecting import FAILED_NAME, NOT_ASKED_COUNT, Collection, check_complete, check_failed_share
from ml_filter.annotation.ledger import Ledger
from ml_filter.annotation.plan import Plan
from ml_filter.annotation.prompts import keep_prompts
from ml_filter.documents.manifest import LEDGER_NAME, Manifest, digest_of, find_manifest
from ml_filter.documents.output_directory import OutputDirectory, Resumption
from ml_filter.errors import InputError

_ROW_GROUP_BYTES = 2**20
"""Annotations are small: larger row groups would dominate the memory of a run."""


class AnswerSource(Protocol):
    """Where the answers of a run come from: endpoints (asking.py) or the results of a batch (batch/)."""

    retry_hint: str
    """How to ask for failed answers again; continued by `with --retry-failed`."""

    def fill(self, plan: Plan, ledger: Ledger, budget: Budget) -> None:
        """Put the available answers into the ledger."""

    def check_open(self, open_votes: int, output: str) -> None:
        """Raise TooManyFailures if it is known why votes are still open."""


def run(plan: Plan, answers: AnswerSource, output: str | Path) -> Manifest:
    """Fill the ledger, write the output and return its manifest. Resumes where an earlier run stopped.

    Raises:
        TooManyFailures: the failed share is above `max_failed_share`, or the budget is used up. Answers stay in the
            ledger; with `at_budget` finish the output is complete nevertheless.
        EndpointError: no endpoint answers, or all requests are rejected with the same error.
        InputError: the source is wrong, or the output directory is not local, in use or taken.
    """
    task, config = plan.task, plan.config
    with output_directory(plan, output) as out:
        if out.manifest and not (config.retry_failed and out.manifest.counts["failed"]):
            if NOT_ASKED_COUNT in out.manifest.counts:
                check_failed_share(plan, Counter(out.manifest.counts), out.path, answers.retry_hint)
            return out.manifest
        if not out.is_local:
            raise InputError(f"{out.path}: the output must be a local directory, because its ledger is a local file")
        if out.manifest:
            out.reopen()
        keep_prompts(out, task.questions)
        with open_ledger(plan, Path(out.root) / LEDGER_NAME) as ledger:
            budget = Budget(config, ledger.tokens_used(plan.question_digests))
            answers.fill(plan, ledger, budget)
            with (
                out.new_shard(task.shard, task.schema, _ROW_GROUP_BYTES) as writer,
                out.new_rejects(task.shard) as rejects,
                (Path(out.root) / FAILED_NAME).open("w", encoding="utf-8") as failed,
            ):
                counts = Collection(plan, ledger, budget).write(writer.write, rejects, failed)
                # A check that fails here leaves the directory unfinished. With at_budget finish the same check comes
                # after the manifest is written, since the output is complete.
                if not counts[NOT_ASKED_COUNT]:
                    _check(plan, answers, budget, counts, out.path)
            task.write_report(out, plan.annotator)
            manifest = out.finish([(task.shard, out.commit(task.shard, writer, rejects, counts))])
        if counts[NOT_ASKED_COUNT]:
            _check(plan, answers, budget, counts, out.path)
        return manifest


def _check(plan: Plan, answers: AnswerSource, budget: Budget, counts: Counter[str], output: str) -> None:
    if counts["open"]:
        answers.check_open(counts["open"], output)
    check_complete(plan, budget, counts, output, answers.retry_hint)


def open_ledger(plan: Plan, default: Path) -> Ledger:
    """The ledger of the configuration, else the one at `default`."""
    return Ledger(Path(plan.config.ledger or default))


def output_directory(plan: Plan, path: str | Path) -> OutputDirectory:
    """The output of a plan. Another plan may take over a directory in which nothing was answered yet, such as one left
    by a first run with a wrong setting."""
    resumption = Resumption(digest_of(plan.task.kind), _has_no_answers)
    return OutputDirectory(path, plan.task.kind, plan.identity, plan.parents, resumption=resumption)


def _has_no_answers(out: OutputDirectory) -> bool:
    if not out.is_local or find_manifest(out.path) is not None:
        return False
    path = Path(out.root) / LEDGER_NAME
    if not path.exists():
        return True
    with Ledger(path) as ledger:
        return ledger.is_worthless()
