"""One run of a command that asks an LLM: get the open answers into the ledger, write them as rows, check the output."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, TextIO

import pyarrow as pa
from loguru import logger

from ml_filter.annotation.budget import NO_TOKENS, Budget, Usage
from ml_filter.annotation.failures import RequestFailed
from ml_filter.annotation.grammar import AnswerError
from ml_filter.annotation.ledger import Key, Ledger, default_ledger, open_ledger
from ml_filter.annotation.plan import Call, Plan, Vote
from ml_filter.annotation.prompts import Question, keep_prompts
from ml_filter.annotation.responses import Answer
from ml_filter.documents.manifest import PROGRESS_NAME, Manifest, Parent, digest_of, find_manifest
from ml_filter.documents.output_directory import OutputDirectory, Resumption
from ml_filter.documents.rejects import RejectsLog, nothing_read
from ml_filter.documents.schema import ANNOTATION_SCHEMA
from ml_filter.errors import EndpointError, InputError, TooManyFailures
from ml_filter.location import Location
from ml_filter.metrics import FIGURES, Latencies

FAILED_NAME = "failed.jsonl"
"""The failed answers of the last run, for people to read."""
NOT_ASKED = "not_asked"
"""Error code of a vote that the budget had no room for."""
_BEFORE = f"{PROGRESS_NAME}/tokens-before"
NOT_ASKED_COUNT = f"failed_{NOT_ASKED}"
ASKED, FROM_LEDGER = "answers_asked", "answers_from_ledger"
"""How many answers a run asked for and how many it found, in `made_with` of its manifest."""
_ANSWERS = "answers"
_ALIKE = 20
"""If as many first answers fail with the same code, so would all others."""
_ADVICE = {
    "bad_request": "Check the setting that the message names: the model, extra_body, top_p, temperature, structured, "
    "or top_logprobs and max_tokens of the prompt",
    "context_too_long": "Set tokenizer and context_tokens, or a lower max_text_chars or max_tokens in the prompt",
    "text_too_long": "Set tokenizer (with it, the text may fill the context), or a higher max_text_chars in the prompt",
    "malformed_answer": "Check --endpoint (ML_FILTER_ENDPOINT): its URL may lead to a web page or to another API",
    "content_filter": "Use another provider or model, or its settings for filters (extra_body)",
    "cut_off": "Set a higher max_tokens in the prompt",
    "only_reasoning": "Turn reasoning off (extra_body), set a higher max_tokens in the prompt, or check the reasoning "
    "parser of the server",
    "tool_call": "Remove tools from extra_body and from the server's defaults",
    "unparsable_score": "Compare the answers (raw in the ledger) with the pattern of the prompt",
    "unparsable_json": "Use a server with structured output, or compare the answers (raw in the ledger) with the "
    "prompt",
    "schema_mismatch": "Compare the answers (raw in the ledger) with the schema of the prompt",
    "no_logprobs": "Use a server that returns log-probabilities, or set top_logprobs of the prompt to 0",
}
_FAILED_FIELDS = ("document_id", "criterion", "prompt", "vote", "error", "reason", "attempts")
_ROW_GROUP_BYTES = 2**20
"""Annotations are small: larger row groups would dominate the memory of a run."""


class AnswerSource(ABC):
    """Where the answers of a run come from: endpoints (asking.py) or the results of a batch (batch/)."""

    retry_hint: ClassVar[str]
    """How to ask for failed answers again; continued by `with --retry-failed`."""

    @property
    @abstractmethod
    def recorded(self) -> int:
        """How many answers it has put into the ledger."""

    @abstractmethod
    def fill(self, plan: Plan, ledger: Ledger, budget: Budget) -> None:
        """Put the available answers into the ledger."""

    def check_open(self, open_votes: int, output: str, ledger: Location) -> None:  # noqa: B027
        """Raise TooManyFailures if it is known why votes are still open."""


def run(plan: Plan, answers: AnswerSource, output: str | Path, ledgers: str | None = None) -> Manifest:
    """Fill the ledger, write the output and return its manifest. Resumes where an earlier run stopped.

    An output whose documents have changed since is written again: the answers that still apply are in the ledger, and
    only the others are asked for.

    Args:
        ledgers: directory of ledgers that outputs share (default: the ledger is in the output).

    Raises:
        TooManyFailures: the failed share is above `max_failed_share`, or the budget is used up. Answers stay in the
            ledger; with `at_budget` finish the output is complete nevertheless.
        EndpointError: no endpoint answers or can be used, or the first answers all fail with the same code.
        InputError: the source is wrong, the output directory or the ledger is in use, or the directory is taken.
    """
    task, config = plan.task, plan.config
    with output_directory(plan, output) as out:
        is_current = out.manifest is not None and _digests(out.manifest.parents) == _digests(plan.parents)
        if out.manifest and is_current and not (config.retry_failed and out.manifest.counts["failed"]):
            if NOT_ASKED_COUNT in out.manifest.counts:
                check_failed_share(plan, Counter(out.manifest.counts), out.path, answers.retry_hint)
            origin = _origin(asked=0, total=sum(answers_of(out.manifest).values()))
            return out.manifest.model_copy(update={"made_with": out.manifest.made_with | origin})
        if out.manifest:
            out.reopen()
        keep_prompts(out, task.questions)
        location = ledger_location(plan, out.location, ledgers)
        with open_ledger(location, config) as ledger:
            budget = budget_of(plan, ledger, out, ledgers)
            answers.fill(plan, ledger, budget)
            ledger.flush()  # nothing is in the output that the ledger could still lose
            with (
                out.new_shard(task.shard, task.schema, _ROW_GROUP_BYTES) as writer,
                out.new_rejects(task.shard) as rejects,
                _failed_file(out) as failed,
            ):
                latencies = Latencies()
                counts = _write_rows(plan, ledger, budget, writer.write, rejects, failed, latencies)
                # A check that fails here leaves the directory unfinished. With at_budget finish the same check comes
                # after the manifest is written, since the output is complete.
                if not counts[NOT_ASKED_COUNT]:
                    _check_complete(plan, answers, budget, counts, out.path, location)
            task.write_report(out, plan.annotator)
            origin = _origin(asked=answers.recorded, total=counts.pop(_ANSWERS))
            out.facts = {**origin, FIGURES: _figures(plan, counts, latencies)}
            manifest = out.finish([(task.shard, out.commit(task.shard, writer, rejects, counts))])
        if counts[NOT_ASKED_COUNT]:
            _check_complete(plan, answers, budget, counts, out.path, location)
        return manifest


def answers_of(manifest: Manifest) -> dict[str, int]:
    """How many answers the run that wrote a manifest asked for, and how many it found in its ledger."""
    return {name: manifest.made_with[name] for name in (ASKED, FROM_LEDGER) if name in manifest.made_with}


def output_directory(plan: Plan, path: str | Path) -> OutputDirectory:
    """The output of a plan, which grows with its documents. Another plan may take over a directory in which nothing was
    answered yet, such as one left by a first run with a wrong setting."""

    def has_no_answers(out: OutputDirectory) -> bool:
        place = default_ledger(out.location)
        if find_manifest(out.path) is not None:
            return False
        if not place.exists():
            return True
        with open_ledger(place, plan.config) as ledger:
            return ledger.is_worthless()

    resumption = Resumption(digest_of(plan.task.kind), has_no_answers)
    return OutputDirectory(path, plan.task.kind, plan.identity, plan.parents, resumption=resumption, fixed=())


def ledger_location(plan: Plan, output: Location, ledgers: str | None = None) -> Location:
    """Where the answers of a plan are kept: as configured, or in a directory that outputs share, or in the output.

    In a shared directory, the ledger is named by what shapes its answers, so that other questions do not lock it.
    """
    if plan.config.ledger is not None:
        return Location(plan.config.ledger)
    if ledgers is None:
        return default_ledger(output)
    place = Location(ledgers) / digest_of(plan.question_digests)[:8]
    return Location(f"{place}.sqlite") if place.is_local else place


def budget_of(plan: Plan, ledger: Ledger, out: OutputDirectory, ledgers: str | None = None) -> Budget:
    """The budget of a plan, less the tokens used for this output."""
    used = ledger.tokens_used(plan.question_digests)
    return Budget(plan.config, used if ledgers is None or plan.config.ledger else _used_here(out, used))


def _used_here(out: OutputDirectory, used: tuple[int, int]) -> tuple[int, int]:
    """The tokens used since this output was begun: a ledger that outputs share also has those of earlier outputs."""
    place = out.location / _BEFORE
    if (before := place.find_bytes()) is None:
        before = json.dumps(used).encode()
        place.write_bytes(before)
    prompt, completion = json.loads(before)
    return used[0] - prompt, used[1] - completion


def _origin(asked: int, total: int) -> dict[str, int]:
    return {ASKED: asked, FROM_LEDGER: total - asked}


def _digests(parents: Sequence[Parent]) -> list[str]:
    return [parent.digest for parent in parents]


@contextmanager
def _failed_file(out: OutputDirectory) -> Iterator[TextIO]:
    """A file that becomes failed.jsonl, also if the run ends because too many failed."""
    path = out.scratch / FAILED_NAME
    try:
        with path.open("w", encoding="utf-8") as file:
            yield file
    finally:
        out.put_file(path, FAILED_NAME)


def _failed_row(annotator: str, question: Question, key: Key, **fields: Any) -> dict[str, Any]:
    return dict.fromkeys(ANNOTATION_SCHEMA.names) | {
        "document_id": key.document_id,
        "annotator": annotator,
        "prompt": question.name,
        "prompt_digest": question.digest,
        "criterion": question.criterion,
        "vote": key.vote,
        "status": "failed",
        "windows": 0,
        "truncated": False,
        "attempts": 0,
        "created_at": datetime.now(UTC).isoformat(),
        **fields,
    }


class Recorder:
    """Writes the outcomes of calls to the ledger. `failed` counts those without a usable answer."""

    def __init__(self, plan: Plan, ledger: Ledger, retry_hint: str) -> None:
        self.plan, self.ledger, self.retry_hint = plan, ledger, retry_hint
        self.failed = self._alike = 0
        self.latencies = Latencies()
        self._code: str | None = ""  # of all outcomes so far; None once one is usable

    def record(
        self, call: Call, outcome: Answer | RequestFailed, used: Usage | None, assumed: Usage = NO_TOKENS
    ) -> None:
        """Write one outcome with the tokens of all its tries: `used` as reported, `assumed` without a report.

        Raises:
            EndpointError: the first outcomes have all failed with the same code.
        """
        task = self.plan.task
        fields = {"windows": call.windows, "truncated": call.truncated, "attempts": outcome.attempts}
        row = _failed_row(self.plan.annotator, call.question, call.key, **fields)
        if used is not None:
            row |= {"prompt_tokens": int(used.prompt), "completion_tokens": int(used.completion)}
        if isinstance(outcome, RequestFailed):
            row |= {"error": outcome.code, "reason": str(outcome)}
        else:
            row |= {"raw": outcome.text, "latency_s": outcome.latency_s}
            self.latencies.add(outcome.latency_s, outcome.completion_tokens)
            try:
                row |= {"status": task.done, **task.read(outcome, call)}
            except AnswerError as error:
                row |= {"error": error.code, "reason": str(error)}
        self.ledger.record(call.key, call.window, row, (math.ceil(assumed.prompt), math.ceil(assumed.completion)))
        if row["error"]:
            self.failed += 1
            logger.debug(f"{call.key.document_id}: {row['error']}: {row['reason']}")
            self._check_alike(row["error"], row["reason"])
        else:
            self._code = None

    def _check_alike(self, code: str, reason: str) -> None:
        if self._code is None:
            return
        self._alike = self._alike + 1 if code == self._code else 1
        self._code = code
        if self._alike == _ALIKE:
            raise EndpointError(
                f"the first {_ALIKE} answers have all failed with the code {code}. The last one: {reason.rstrip('.')}. "
                f"{_ADVICE.get(code, 'Find the cause in the message')}. These documents have failed, and the others "
                f"are open. After the fix, {self.retry_hint} with --retry-failed to ask for all of them; to go on "
                "with the open ones only, run the same command again"
            )


def _figures(plan: Plan, counts: Mapping[str, int], latencies: Latencies) -> dict[str, float]:
    """Latency and cost of the annotator over all answers in the output, whichever run asked for them."""
    usd = plan.config.usd(counts["prompt_tokens"], counts["completion_tokens"])
    return latencies.figures() | ({} if usd is None else {"usd": round(usd, 6)})


def _write_rows(
    plan: Plan,
    ledger: Ledger,
    budget: Budget,
    write: Callable[[pa.Table], None],
    rejects: RejectsLog,
    failed: TextIO,
    latencies: Latencies,
) -> Counter[str]:
    """Write the rows of a plan in input order, a table for each table of documents, and each failed row as a JSON line.

    Args:
        latencies: gets those of all answers.

    Returns:
        Counts by status and error code. Votes without an answer count as `open`. Tokens are those of all tries, also of
        answers that were replaced.

    Raises:
        InputError: no document has a text.
    """
    names = ("documents", plan.task.done, "failed", "truncated", "prompt_tokens", "completion_tokens")
    counts: Counter[str] = Counter(dict.fromkeys(names, 0))
    has_text = False
    for shard, documents in plan.tables(rejects):
        counts["documents"] += documents.num_rows
        rows = []
        for vote in plan.votes(documents):
            has_text = has_text or bool(vote.text)
            row = _row(plan, ledger, budget, vote, counts, latencies)
            if row is None:
                counts["open"] += 1
                continue
            counts[row["status"]] += 1
            counts["truncated"] += row["truncated"]
            if row["error"]:
                counts[f"failed_{row['error']}"] += 1
                failed.write(json.dumps({name: row[name] for name in _FAILED_FIELDS}, ensure_ascii=False) + "\n")
            rows.append(row)
        write(plan.task.table(shard, documents, rows, counts))
    if not has_text:
        reasons = Counter(rejects.counts) + Counter(no_text=counts["documents"])
        raise nothing_read(plan.source.paths, dict(reasons.most_common()), "text_column (--text-column)", rejects.first)
    return counts


def _row(
    plan: Plan, ledger: Ledger, budget: Budget, vote: Vote, counts: Counter[str], latencies: Latencies
) -> dict[str, Any] | None:
    """The row of a vote, whose tokens are added to the counts; None while an answer is missing."""
    if not vote.text:
        error, reason = "no_text", "the document has no text"
    else:
        answers, paid = ledger.answers(vote.key)
        counts[_ANSWERS] += len(answers)
        for answer in answers:
            latencies.add(answer.get("latency_s"), answer.get("completion_tokens"))
        counts.update(prompt_tokens=paid.prompt, completion_tokens=paid.completion)
        if paid.assumed:
            counts["tokens_unreported"] += paid.assumed
        if answers and len(answers) >= answers[0]["windows"]:
            return plan.task.join(answers)
        if not (budget.is_spent and plan.config.at_budget == "finish"):
            return None
        # Only in the output: in the ledger the vote stays open, for a later run with a higher budget.
        error, reason = NOT_ASKED, f"the budget of {budget.describe()} had no room for it"
    return _failed_row(plan.annotator, vote.question, vote.key, error=error, reason=reason)


def _check_complete(
    plan: Plan, answers: AnswerSource, budget: Budget, counts: Counter[str], output: str, ledger: Location
) -> None:
    """Check that every vote has an answer and that few enough failed.

    Raises:
        TooManyFailures: the budget ended the run, or the failed share is above `max_failed_share`.
        InputError: documents were added or changed during the run.
    """
    scored, failed, open_votes = counts[plan.task.done], counts["failed"], counts["open"]
    if open_votes:
        answers.check_open(open_votes, output, ledger)
    if open_votes and budget.is_spent:
        raise TooManyFailures(
            f"the budget of {budget.describe()} is used up: {scored + failed:,} answers are in the ledger {ledger}, "
            f"{open_votes:,} are open. Run again with a higher budget; finished answers are not asked again. Or run "
            "again with --at-budget finish (at_budget: finish) to mark the open answers as failed "
            f"({NOT_ASKED}) and use the others"
        )
    if open_votes:
        raise InputError(f"{open_votes:,} documents were changed or added during the run; run again")
    if counts[NOT_ASKED_COUNT]:
        logger.warning(
            f"The budget of {budget.describe()} is used up: {counts[NOT_ASKED_COUNT]:,} of {scored + failed:,} answers "
            f"have failed with the code {NOT_ASKED}. To ask for them, run again with a higher budget and --retry-failed"
        )
    check_failed_share(plan, counts, output, answers.retry_hint)


def check_failed_share(plan: Plan, counts: Counter[str], output: str, retry_hint: str) -> None:
    """Raise TooManyFailures if the failed share is above `max_failed_share`.

    Args:
        counts: by status and, as `failed_CODE`, by error code.
        output: the directory with `failed.jsonl`.
        retry_hint: as of `AnswerSource`.
    """
    failed, total = counts["failed"], counts[plan.task.done] + counts["failed"]
    if failed <= plan.config.max_failed_share * total:
        return
    codes = Counter({name[7:]: count for name, count in counts.items() if name.startswith("failed_")})
    listed = ", ".join(f"{code} {count:,}" for code, count in codes.most_common())
    budget, usable = ("a higher budget and ", "; the other answers can be used") if NOT_ASKED in codes else ("", "")
    raise TooManyFailures(
        f"{failed:,} of {total:,} answers failed ({listed}), more than "
        f"max_failed_share={plan.config.max_failed_share:g} allows. To ask only for those again, {retry_hint} with "
        f"{budget}--retry-failed. They are listed in {output}/{FAILED_NAME}{usable}"
    )
