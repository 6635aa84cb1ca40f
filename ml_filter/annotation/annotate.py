"""Annotate documents: each one once, in bounded concurrency, with nothing lost when the run is killed."""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple, TextIO, TypeVar

import pyarrow as pa
from loguru import logger
from pydantic import SecretStr, ValidationError

from ml_filter.annotation.budget import NO_TOKENS, Budget, Spending, Usage
from ml_filter.annotation.client import Endpoint, RequestFailed
from ml_filter.annotation.config import AnnotateConfig, AskConfig, EndpointConfig
from ml_filter.annotation.embedded import MODEL_NAME, embedded_endpoint
from ml_filter.annotation.endpoints import EndpointPool
from ml_filter.annotation.judge import Judge
from ml_filter.annotation.ledger import Key, Ledger, Paid, SeenIds
from ml_filter.annotation.parsing import Answer, AnswerError, read_verdict
from ml_filter.annotation.prompts import (
    Prompt,
    Question,
    keep_prompts,
    language_code,
    load_prompt,
    prompts_by_criterion,
)
from ml_filter.annotation.windows import Windows, combine
from ml_filter.config import Settings, problems_in
from ml_filter.documents.config import SourceConfig
from ml_filter.documents.lineage import criteria_config
from ml_filter.documents.manifest import LEDGER_NAME, Manifest, Parent, digest_of, find_manifest
from ml_filter.documents.output_directory import OutputDirectory, Resumption
from ml_filter.documents.readers import InputShard, known_rows, read_shard, text_id
from ml_filter.documents.rejects import RejectsLog
from ml_filter.documents.schema import ANNOTATION_SCHEMA
from ml_filter.documents.sources import list_shards
from ml_filter.errors import ConfigError, EndpointError, InputError, MlFilterError, TooManyFailures
from ml_filter.progress import progress

_READ_AHEAD = 256
_ROW_GROUP_BYTES = 2**20
"""Annotations are small: larger groups would be most of what a run holds in memory."""
_FAILED_FIELDS = ("document_id", "criterion", "prompt", "vote", "error", "reason", "attempts")
_NO_TEXT = {"error": "no_text", "reason": "the document has no text"}
FAILED_NAME = "failed.jsonl"
"""The failed answers of the last run, for a look."""
NOT_ASKED = "not_asked"
"""The error code of what the budget had no room for."""
_NOT_ASKED_COUNT = f"failed_{NOT_ASKED}"
_REFUSED_ALIKE = 20
_NUMBERS = re.compile(r"\S*\d\S*")
"""What differs between refusals for one reason: ids of requests, counts."""
_AFTER_THE_ANSWER = {"votes", "combine_windows"}
"""What happens to answers once they are there; the ledger's answers stay good when it changes."""


class Call(NamedTuple):
    """One request to come: a window of a document, a prompt and a vote."""

    key: Key
    prompt: Question
    piece: str
    window: int
    windows: int
    truncated: bool


def annotate_documents(
    source: SourceConfig, config: AnnotateConfig, output: str | Path, settings: Settings | None = None
) -> Manifest:
    """Put prompts to an LLM about every document; every answer is in the ledger before it counts.

    Args:
        source: the documents, usually a sample.
        config: prompts, endpoints, votes and limits.
        output: a local directory; it also holds the prompts and, unless the configuration names another, the ledger.
        settings: endpoint and key of the environment; read from it when not given.

    Raises:
        TooManyFailures: more documents failed than `max_failed_share`, or the budget is used up. What was answered
            stays in the ledger; the same command asks only for what is open, with `retry_failed` for the failed too.
            With `at_budget` finish what the budget had no room for has failed, and the output is complete all the same.
        EndpointError: no endpoint answers any more, none can be used at all, or every request is refused alike.
        InputError, ConfigError: the source, a prompt or the output directory is wrong.
    """
    settings = settings or Settings()
    run, made_by, parents = prepare(Run, source, config, annotator_name(config, settings))
    with answers_directory(output, "annotations", made_by, parents) as out:
        return run_to_the_end(out, settings, run)


def answers_directory(
    path: str | Path, kind: str, made_by: Mapping[str, Any], parents: Sequence[Parent]
) -> OutputDirectory:
    """The directory of a run. Other settings may take over one in which nothing was answered yet, as a first run with
    a wrong setting leaves it."""
    return OutputDirectory(path, kind, made_by, parents, resumption=Resumption(digest_of(kind), _holds_nothing))


def _holds_nothing(out: OutputDirectory) -> bool:
    if not out.is_local or find_manifest(out.path) is not None:
        return False
    path = Path(out.root) / LEDGER_NAME
    if not path.exists():
        return True
    with Ledger(path) as ledger:
        return ledger.is_worthless()


R = TypeVar("R", bound="Run")


def prepare(
    kind: type[R], source: SourceConfig, config: AnnotateConfig, annotator: str
) -> tuple[R, dict[str, Any], list[Parent]]:
    """A run that has not begun, what identifies its annotations, and its input."""
    prompts = [load_prompt(name) for name in config.prompts]
    shards, parents = list_shards(source)
    made_by = {
        "source": source.model_dump(mode="json"),
        "prompts": [
            {
                "name": prompt.name,
                "digest": prompt.digest,
                "criterion": prompt.criterion,
                "language": prompt.language,
            }
            for prompt in prompts
        ],
        **criteria_config(prompt.defined_criterion for prompt in prompts),
        "annotator": annotator,
        **answer_settings(config),
    }
    return kind(source, shards, config, prompts_by_criterion(prompts), annotator), made_by, parents


def run_to_the_end(out: OutputDirectory, settings: Settings, run: Run) -> Manifest:
    """Ask what is open, write what came of it all, and finish the directory; raises as `annotate_documents`."""
    if out.manifest and not (run.config.retry_failed and out.manifest.counts["failed"]):
        if _NOT_ASKED_COUNT in out.manifest.counts:
            run.check_failed(Counter(out.manifest.counts), out.path)
        return out.manifest
    if not out.is_local:
        raise InputError(f"{out.path}: answers need a local directory, for their ledger")
    if out.manifest:
        out.reopen()
    keep_prompts(out, (question for languages in run.criteria.values() for question in languages.values()))
    with Ledger(Path(run.config.ledger or Path(out.root) / LEDGER_NAME)) as ledger:
        run.open(ledger)
        run.ask_all(settings)
        with (
            out.new_shard(run.shard, run.schema, _ROW_GROUP_BYTES) as writer,
            out.new_rejects(run.shard) as rejects,
            (Path(out.root) / FAILED_NAME).open("w", encoding="utf-8") as failed,
        ):
            counts = run.collect(writer.write, rejects, failed)
            if not counts[_NOT_ASKED_COUNT]:
                run.check(counts, out.path)
        run.report(out)
        made = out.finish([(run.shard, out.commit(run.shard, writer, rejects, counts))])
    if counts[_NOT_ASKED_COUNT]:
        run.check(counts, out.path)
    return made


def annotator_name(config: AskConfig, settings: Settings) -> str:
    """What annotations are signed with: the model's name.

    Raises:
        ConfigError: there is an endpoint and no model is named.
    """
    if not (config.endpoints or settings.endpoint):
        return MODEL_NAME
    model = config.model or settings.model
    if not model:
        raise ConfigError("an endpoint needs a model name: give --model or set ML_FILTER_MODEL")
    return model


def answer_settings(config: AskConfig) -> dict[str, Any]:
    """The settings that shape answers, beside prompt and model."""
    shaping = {"votes", "temperature", "top_p", "seed", "extra_body", "structured", "tokenizer", "context_tokens"}
    shaping |= {"chat_template", "add_generation_prompt", "long_documents", "max_windows", "combine_windows"}
    return config.model_dump(mode="json", include=shaping)


def configured_endpoints(config: AskConfig, settings: Settings) -> list[Endpoint]:
    """The endpoints of the configuration, else of the environment; empty where none is set.

    Raises:
        ConfigError: no model is named, or the environment has no key under the name that an endpoint gives.
    """
    given = config.endpoints or [url.strip() for url in (settings.endpoint or "").split(",") if url.strip()]
    try:
        configs = [EndpointConfig(url=one) if isinstance(one, str) else one for one in given]
    except ValidationError as error:
        raise ConfigError(f"ML_FILTER_ENDPOINT: {problems_in(error, 'endpoint')}") from None
    return [_endpoint(one, config, settings) for one in configs]


def _endpoint(one: EndpointConfig, config: AskConfig, settings: Settings) -> Endpoint:
    name = one.api_key_env or "ML_FILTER_API_KEY"
    if one.api_key_env:
        key = os.environ.get(one.api_key_env, "").strip()
        if not key:
            raise ConfigError(f"the environment variable {name}, the key of {one.url}, is not set")
    else:
        key = (settings.api_key.get_secret_value().strip() if settings.api_key else "") or "none"
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(f"{name} holds signs that no key has, such as line breaks or letters that are not ASCII")
    return Endpoint(one.url, one.model or annotator_name(config, settings), SecretStr(key), key_name=one.api_key_env)


def open_endpoints(config: AskConfig, settings: Settings) -> AbstractContextManager[list[Endpoint]]:
    """The configured endpoints or, where none is set, the embedded judge, started and stopped with the context."""
    endpoints = configured_endpoints(config, settings)
    return nullcontext(endpoints) if endpoints else embedded_endpoint(settings)


def open_pool(endpoints: Sequence[Endpoint], config: AskConfig) -> EndpointPool:
    """The endpoints behind one door; call it with a running event loop."""
    return EndpointPool(
        endpoints,
        max_concurrency=config.max_concurrency,
        timeout_s=config.timeout_s,
        max_retries=config.max_retries,
        max_outage_s=config.max_outage_s,
    )


class _Refusals:
    """Ends a run whose every request is refused alike, as an unsupported parameter is, before all is asked."""

    def __init__(self) -> None:
        self._alike = 0
        self._words: str | None = None
        self._is_over = False

    def check(self, outcome: Answer | RequestFailed) -> None:
        """Count what came of a request.

        Raises:
            EndpointError: it is the 20th in a row that is refused in the same words, and none was answered before.
        """
        if self._is_over:
            return
        if not isinstance(outcome, RequestFailed):
            self._is_over = True
            return
        words = _NUMBERS.sub("", str(outcome)) if outcome.code == "bad_request" else None
        self._alike = 0 if words is None else self._alike + 1 if words == self._words else 1
        self._words = words
        if self._alike >= _REFUSED_ALIKE:
            said = str(outcome).rstrip(".")
            raise EndpointError(
                f"the endpoint refuses every request alike, the first {_REFUSED_ALIKE} of this run: {said}. Check "
                "what the message names: the model, or a setting that shapes requests (extra_body, top_p, temperature, "
                "structured, or top_logprobs and max_tokens of the prompt). These documents are failed as bad_request; "
                "when it is mended, --retry-failed asks for them again"
            )


class Run:
    """One run over documents: which calls are open, asking them, and what came of them all.

    As it stands its prompts ask for scores. Runs that ask for something else derive from it (translate.py, label.py)
    and say how their answers are read and written.
    """

    shard, done, doing = "annotations", "scored", "Annotating"
    """Name of the shard, status of an answer that is good, and words for the progress bar."""
    schema: pa.Schema | None = ANNOTATION_SCHEMA
    ledger: Ledger
    budget: Budget
    counts: Counter[str]
    again = "run again"
    """How a person has the failed ones asked again."""
    asked, failed, asking_s = 0, 0, 0.0
    """Requests that were answered or failed in this process, those that failed, and the seconds that took."""
    _finished = 0
    """Calls found finished that the progress bar has not heard of yet."""

    def __init__(
        self,
        source: SourceConfig,
        shards: list[InputShard],
        config: AskConfig,
        criteria: Mapping[str, Mapping[str, Question]],
        annotator: str,
    ) -> None:
        self.source, self.shards, self.config = source, shards, config
        self.criteria, self.annotator = criteria, annotator
        self._refusals = _Refusals()
        self.votes = config.votes if isinstance(config, AnnotateConfig) else 1
        shaping = {name: value for name, value in answer_settings(config).items() if name not in _AFTER_THE_ANSWER}
        self._questions = {
            prompt.digest: digest_of([prompt.digest, annotator, shaping])
            for languages in criteria.values()
            for prompt in languages.values()
        }

    def open(self, ledger: Ledger) -> None:
        """Take up the answers that are there, which count towards the budget."""
        self.ledger = ledger
        self.budget = Budget(self.config, ledger.tokens_used(list(self._questions.values())))

    # --- which calls there are

    def tables(self, rejects: RejectsLog) -> Iterator[tuple[InputShard, pa.Table]]:
        """The documents in input order, those with an id and no text among them; one whose id came before is rejected,
        not asked about."""
        seen = SeenIds()
        try:
            for shard in self.shards:
                for table in read_shard(shard, self.source, rejects, keep_blank=True):
                    first = [seen.add(document_id) for document_id in table["id"].to_pylist()]
                    if not all(first):
                        for document_id in table["id"].filter(pa.array([not one for one in first])).to_pylist():
                            rejects.add(shard.uri, document_id, "duplicate_id", "an earlier document has this id")
                        table = table.filter(pa.array(first))  # noqa: PLW2901
                    yield shard, table
        finally:
            seen.close()

    def questions(self, table: pa.Table) -> Iterator[tuple[str, str, list[Question]]]:
        """Each document's id, text and prompts."""
        ids, texts = table["id"].to_pylist(), table["text"].to_pylist()
        for document_id, text, language in zip(ids, texts, self._languages(table), strict=True):
            yield document_id, text, self.prompts_for(language)

    def _languages(self, table: pa.Table) -> list[str | None]:
        if "language" not in table.column_names:
            return [None] * table.num_rows
        values = table["language"].to_pylist()
        codes = {value: language_code(value) for value in {v for v in values if isinstance(v, str)}}
        return [codes[v] if isinstance(v, str) else None for v in values]

    def prompts_for(self, language: str | None) -> list[Question]:
        """For each criterion the prompt in the document's language, or the first."""
        return [of.get(language or "") or next(iter(of.values())) for of in self.criteria.values()]

    def keys(self, document_id: str, text: str, prompts: Sequence[Question]) -> Iterator[tuple[Question, Key]]:
        """One key for each prompt and vote."""
        digest = text_id(text)
        for prompt in prompts:
            for vote in range(self.votes):
                yield prompt, Key(document_id, digest, self._questions[prompt.digest], vote)

    def _open(self) -> Iterator[tuple[Question, Key, str, dict[int, str]]]:
        """Prompt, key, text and what is known of its windows, for the calls that are not finished."""
        for _, table in self.tables(RejectsLog()):
            for document_id, text, prompts in self.questions(table):
                if not text:
                    self._finished += len(prompts) * self.votes
                    continue
                for prompt, key in self.keys(document_id, text, prompts):
                    statuses = self.ledger.statuses(key)
                    if not statuses or any(self._is_open(status) for status in statuses.values()):
                        yield prompt, key, text, statuses
                    else:
                        self._finished += 1

    def _is_open(self, status: str) -> bool:
        return status == "open" or (status == "failed" and self.config.retry_failed)

    # --- asking

    def ask_all(self, settings: Settings) -> None:
        """Ask what is open. Starts the embedded judge only when something is."""
        calls = self._open()
        first = next(calls, None)
        if first is None:
            return
        with open_endpoints(self.config, settings) as endpoints:
            asyncio.run(self._ask(endpoints, chain([first], calls)))

    async def _ask(
        self, endpoints: Sequence[Endpoint], calls: Iterator[tuple[Question, Key, str, dict[int, str]]]
    ) -> None:
        rows = known_rows(self.shards)
        total = None if rows is None else rows * self.votes * len(self.criteria)
        queue: asyncio.Queue[Call | None] = asyncio.Queue(maxsize=self.config.max_concurrency)
        async with open_pool(endpoints, self.config) as pool:
            with progress(f"{self.doing} with {self.annotator}", total, lambda: self._standing(pool)) as bar:
                judge = Judge(pool, self.config)
                start = time.monotonic()

                async def work() -> None:
                    while (call := await queue.get()) is not None:
                        if await self._answer(judge, call):
                            bar.advance()

                async def feed() -> None:
                    windows: dict[str, Windows] = {}
                    # in a thread, so that reading shards and looking up the ledger hold no answer up
                    while batch := await asyncio.to_thread(lambda: list(islice(calls, _READ_AHEAD))):
                        bar.skip(self._finished)
                        self._finished = 0
                        for prompt, key, text, statuses in batch:
                            if prompt.digest not in windows:
                                windows[prompt.digest] = await self.windows(judge, prompt)
                            made = 0
                            async for call in self._calls(windows[prompt.digest], key, text, statuses):
                                await queue.put(call)
                                made += 1
                            bar.skip(1 - made)  # a long document takes several
                            if self.budget.is_spent:
                                break
                        if self.budget.is_spent:
                            break
                    for _ in range(self.config.max_concurrency):
                        await queue.put(None)

                try:
                    async with asyncio.TaskGroup() as group:
                        group.create_task(feed())
                        for _ in range(self.config.max_concurrency):
                            group.create_task(work())
                except* MlFilterError as errors:
                    raise errors.exceptions[0] from None
                self.asking_s = time.monotonic() - start

    def _standing(self, pool: EndpointPool) -> str:
        """What a person who watches the run wants to know: whether it works, and what it has cost."""
        used = self.budget.used
        usd = self.config.usd(*used)
        cost = "" if usd is None else f", {usd:,.2f} USD"
        return f"{self.failed:,} failed, {pool.in_flight:,} in flight, {sum(used):,.0f} tokens{cost}"

    async def windows(self, judge: Judge, prompt: Question) -> Windows:
        """What cuts documents for a prompt."""
        return await judge.windows(prompt)

    async def _calls(self, windows: Windows, key: Key, text: str, statuses: dict[int, str]) -> AsyncIterator[Call]:
        """The requests for one document, prompt and vote that are open."""
        pieces, truncated = await windows.pieces(text)
        if statuses and len(statuses) != len(pieces):  # the context, as the endpoint tells it, has changed
            self.ledger.forget(key)
            statuses = {}
        for number, piece in enumerate(pieces):
            if self._is_open(statuses.get(number, "open")):
                yield Call(key, windows.prompt, piece, number, len(pieces), truncated)

    async def _answer(self, judge: Judge, call: Call) -> bool:
        """Ask and record what came of it; False where the budget has no room for it."""
        outcome: Answer | RequestFailed
        spending = Spending(self.budget, call.prompt, call.piece)
        if self.budget.is_spent or not await spending.has_room():
            return False
        try:
            outcome = await judge.ask(call.prompt, call.piece, call.key.vote, spending)
        except RequestFailed as error:
            outcome = error
        spending.end(outcome)
        self.asked += 1
        self.record(call, outcome, spending.reported, spending.assumed)
        self._refusals.check(outcome)
        return True

    def _not_asked(self, prompt: Question, key: Key) -> dict[str, Any]:
        """Not for the ledger: a later run with more budget finds the call open."""
        reason = f"the budget of {self.budget.describe()} had no room for it"
        return self._failed_row(prompt, key) | {"error": NOT_ASKED, "reason": reason}

    def record(
        self,
        call: Call,
        outcome: Answer | RequestFailed,
        used: Usage | None,
        assumed: Usage = NO_TOKENS,
    ) -> None:
        """Read an answer and put it, or why there is none, on disk, with what all its tries used."""
        row = self._failed_row(call.prompt, call.key) | {"windows": call.windows, "truncated": call.truncated}
        if used is not None:
            row |= {"prompt_tokens": int(used.prompt), "completion_tokens": int(used.completion)}
        if isinstance(outcome, RequestFailed):
            row |= {"error": outcome.code, "reason": str(outcome), "attempts": outcome.attempts}
        else:
            row |= {
                "raw": outcome.text,
                "latency_s": outcome.latency_s,
                "attempts": outcome.attempts,
            }
            try:
                row |= {"status": self.done, **self.read(outcome, call)}
            except AnswerError as error:
                row |= {"error": error.code, "reason": str(error)}
        if row["error"]:
            self.failed += 1
            logger.debug(f"{call.key.document_id}: {row['error']}: {row['reason']}")
        self.ledger.record(call.key, call.window, row, (math.ceil(assumed.prompt), math.ceil(assumed.completion)))

    def _failed_row(self, prompt: Question, key: Key) -> dict[str, Any]:
        return dict.fromkeys(ANNOTATION_SCHEMA.names) | {
            "document_id": key.document_id,
            "annotator": self.annotator,
            "prompt": prompt.name,
            "prompt_digest": prompt.digest,
            "criterion": prompt.criterion,
            "vote": key.vote,
            "status": "failed",
            "windows": 0,
            "truncated": False,
            "attempts": 0,
            "created_at": datetime.now(UTC).isoformat(),
        }

    def read(self, answer: Answer, call: Call) -> dict[str, Any]:
        """The fields of a row that the answer gives.

        Raises:
            AnswerError: it cannot be used; the row is `failed` with the error's code.
        """
        assert isinstance(call.prompt, Prompt)
        verdict = read_verdict(answer, call.prompt)
        return {"score": verdict.score, "expected_score": verdict.expected_score, "reason": verdict.reason}

    # --- what came of it

    def collect(self, write: Callable[[pa.Table], None], rejects: RejectsLog, failed: TextIO) -> Counter[str]:
        """Write the ledger's answers in input order, those that failed as JSON lines as well, and count them; a
        document without one yet counts as `open`. Tokens are those of all tries and of answers that were replaced."""
        names = ("documents", self.done, "failed", "truncated", "prompt_tokens", "completion_tokens")
        counts = self.counts = Counter(dict.fromkeys(names, 0))
        with_text = False
        for shard, table in self.tables(rejects):
            rows: list[dict[str, Any]] = []
            counts["documents"] += table.num_rows
            for document_id, text, prompts in self.questions(table):
                with_text = with_text or bool(text)
                for prompt, key in self.keys(document_id, text, prompts):
                    if text:
                        answers, paid = self.ledger.answers(key)
                        self._count_tokens(paid)
                    else:
                        answers = [self._failed_row(prompt, key) | _NO_TEXT]
                    if answers and len(answers) >= answers[0]["windows"]:
                        row = self.one_row(answers)
                    elif self.budget.is_spent and self.config.at_budget == "finish":
                        row = self._not_asked(prompt, key)
                    else:
                        counts["open"] += 1
                        continue
                    counts[row["status"]] += 1
                    counts["truncated"] += row["truncated"]
                    if row["error"]:
                        counts[f"failed_{row['error']}"] += 1
                        shown = {name: row[name] for name in _FAILED_FIELDS}
                        failed.write(json.dumps(shown, ensure_ascii=False) + "\n")
                    rows.append(row)
            write(self.output(shard, table, rows))
        if not with_text:
            why = Counter(rejects.counts) + Counter(no_text=counts["documents"])
            listed = ", ".join(f"{code} {count:,}" for code, count in why.most_common()) or "there is none"
            hint = "; name the column that holds the text with text_column (--text-column)"
            raise InputError(
                f"no document could be read from {', '.join(self.source.paths)}: {listed}"
                + (hint if why.keys() & {"missing_text", "no_text"} else "")
            )
        return counts

    def _count_tokens(self, paid: Paid) -> None:
        self.counts["prompt_tokens"] += paid.prompt
        self.counts["completion_tokens"] += paid.completion
        if paid.assumed:
            self.counts["tokens_unreported"] += paid.assumed

    def output(self, shard: InputShard, table: pa.Table, rows: list[dict[str, Any]]) -> pa.Table:
        """What is written of a table of documents and of its rows of answers."""
        return pa.Table.from_pylist(rows, schema=self.schema)

    def report(self, out: OutputDirectory) -> None:
        """Write what stands beside the shard."""

    def one_row(self, answers: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The row of a document and vote: of its only window, or of all together; one failed window fails it."""
        if len(answers) == 1:
            return answers[0]
        failed = next((answer for answer in answers if answer["error"]), None)
        row = dict(failed or answers[0])
        for name in ("prompt_tokens", "completion_tokens", "latency_s", "attempts"):
            known = [answer[name] for answer in answers if answer[name] is not None]
            row[name] = sum(known) if known else None
        row["raw"] = "\n\n".join(answer["raw"] or "" for answer in answers)
        row["created_at"] = max(answer["created_at"] for answer in answers)
        if failed is None and isinstance(self.config, AnnotateConfig):
            for name in ("score", "expected_score"):
                values = [answer[name] for answer in answers]
                row[name] = None if None in values else combine(values, self.config.combine_windows)
            row["reason"] = "\n\n".join(answer["reason"] for answer in answers if answer["reason"]) or None
        return row

    def check(self, counts: Counter[str], output: str) -> None:
        """Whether what came of it may be called done.

        Raises:
            TooManyFailures: the budget ended the run, or too large a share failed.
            InputError: documents came or changed while they were annotated.
        """
        scored, failed, open_ = counts[self.done], counts["failed"], counts["open"]
        if open_ and self.budget.is_spent:
            raise TooManyFailures(
                f"the budget of {self.budget.describe()} is used up: {scored + failed:,} answers are in the ledger of "
                f"{output}, {open_:,} are open. Run again with a higher budget: finished answers are not asked again. "
                "Or run again with --at-budget finish (at_budget: finish): what is open is then failed as "
                f"{NOT_ASKED}, and the answers that are there can be used"
            )
        if open_:
            raise InputError(f"{open_:,} documents changed or were added while they were annotated; run again")
        if counts[_NOT_ASKED_COUNT]:
            logger.warning(
                f"The budget of {self.budget.describe()} is used up: {counts[_NOT_ASKED_COUNT]:,} of "
                f"{scored + failed:,} answers are failed as {NOT_ASKED}. To ask for those, run again with a higher "
                "budget and --retry-failed"
            )
        self.check_failed(counts, output)

    def check_failed(self, counts: Counter[str], output: str) -> None:
        """Raises TooManyFailures where too large a share failed."""
        scored, failed = counts[self.done], counts["failed"]
        if failed > self.config.max_failed_share * (scored + failed):
            written = ", and the others can be used" if counts[_NOT_ASKED_COUNT] else ""
            more = "a higher budget and " if counts[_NOT_ASKED_COUNT] else ""
            codes = Counter({name[7:]: count for name, count in counts.items() if name.startswith("failed_")})
            raise TooManyFailures(
                f"{failed:,} of {scored + failed:,} answers failed "
                f"({', '.join(f'{code} {count:,}' for code, count in codes.most_common())}), more than "
                f"max_failed_share={self.config.max_failed_share:g} tolerates. To ask for just those again, "
                f"{self.again} with {more}--retry-failed. Each is in {output}/{FAILED_NAME}{written}"
            )
