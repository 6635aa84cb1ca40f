"""Annotate documents: each one once, in bounded concurrency, with nothing lost when the run is killed."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
from loguru import logger
from pydantic import SecretStr

from ml_filter.annotation.embedded import MODEL_NAME, embedded_endpoint
from ml_filter.annotation.judge import Endpoint, Judge, JudgeError
from ml_filter.annotation.ledger import Key, Ledger
from ml_filter.annotation.parsing import Answer, AnswerError, read_verdict
from ml_filter.annotation.prompts import Prompt, load_prompt
from ml_filter.documents.manifest import Manifest, digest_of
from ml_filter.documents.output import OutputDirectory
from ml_filter.documents.readers import known_rows, read_shard, text_id
from ml_filter.documents.rejects import RejectsLog
from ml_filter.documents.schema import ANNOTATION_SCHEMA
from ml_filter.documents.sources import InputShard, list_shards
from ml_filter.errors import ConfigError, EndpointError, InputError, MlFilterError, TooManyFailures
from ml_filter.progress import progress
from ml_filter.settings import AnnotateConfig, Settings, SourceConfig

_SHARD = "annotations"
_WRITE_ROWS = 1000
_OUTAGE_AFTER = 20
"""So many unanswered requests in a row, and not one answered since, are an outage and not bad luck."""


def annotate_documents(
    source: SourceConfig, config: AnnotateConfig, output: str | Path, settings: Settings | None = None
) -> Manifest:
    """Put a prompt to an LLM about every document; every answer is in the ledger before it counts.

    Args:
        source: the documents, usually a sample.
        config: prompt, endpoint, votes and limits.
        output: a local directory; it also holds the ledger.
        settings: endpoint and key of the environment; read from it when not given.

    Raises:
        TooManyFailures: more documents failed than `max_failed_share`, or the token budget is used up. What was
            answered stays in the ledger; the same command asks only for the rest.
        EndpointError: the endpoint does not answer at all.
        InputError, ConfigError: the source, the prompt or the output directory is wrong.
    """
    settings = settings or Settings()
    prompt = load_prompt(config.prompt)
    shards, parents = list_shards(source)
    annotator = _annotator(config, settings)
    question = digest_of([prompt.digest, annotator, config.temperature, config.seed])
    made_by = {
        "source": source.model_dump(mode="json"),
        "prompt": prompt.name,
        "prompt_digest": prompt.digest,
        "criterion": prompt.criterion,
        "score_range": [prompt.score.min, prompt.score.max],
        "annotator": annotator,
        **config.model_dump(mode="json", include={"votes", "temperature", "seed"}),
    }
    with OutputDirectory(output, "annotations", made_by, parents) as out:
        if out.manifest:
            return out.manifest
        if not out.is_local:
            raise InputError(f"{output}: annotations need a local directory, for their ledger")
        with Ledger(Path(out.root) / "ledger.sqlite") as ledger:
            run = _Run(source, shards, config, prompt, question, annotator, ledger)
            run.ask_all(settings)
            _check(run, out.path)
            with out.new_shard(_SHARD, ANNOTATION_SCHEMA) as writer, out.new_rejects(_SHARD) as rejects:
                counts = run.collect(writer.write, rejects)
            return out.finish([(_SHARD, out.commit(_SHARD, writer, rejects, counts))])


def _annotator(config: AnnotateConfig, settings: Settings) -> str:
    if not (config.endpoint or settings.endpoint):
        return MODEL_NAME
    model = config.model or settings.model
    if not model:
        raise ConfigError("an endpoint needs a model name: give --model or set ML_FILTER_MODEL")
    return model


def open_endpoint(config: AnnotateConfig, settings: Settings) -> AbstractContextManager[Endpoint]:
    """The configured endpoint or, where none is set, the embedded judge, started and stopped with the context."""
    url = config.endpoint or settings.endpoint
    if not url:
        return embedded_endpoint(settings)
    model = _annotator(config, settings)
    return nullcontext(Endpoint(url, model, settings.api_key or SecretStr("none"), model))


def _check(run: _Run, output: str) -> None:
    counts = run.ledger.counts(run.question)
    scored, failed = counts.get("scored", 0), counts.get("failed", 0)
    if run.over_budget:
        raise TooManyFailures(
            f"the budget of {run.config.budget_tokens:,} tokens is used up: {scored:,} answers are in the ledger in "
            f"{output}. Run again with a higher --budget-tokens: finished answers are not asked again"
        )
    if failed and failed > run.config.max_failed_share * (scored + failed):
        codes = ", ".join(f"{code} {count:,}" for code, count in run.errors.most_common())
        raise TooManyFailures(
            f"{failed:,} of {scored + failed:,} answers failed ({codes}), more than max_failed_share="
            f"{run.config.max_failed_share:g} tolerates. Run again: only the failed ones are asked again"
        )


class _Run:
    """The state of one annotation run."""

    def __init__(
        self,
        source: SourceConfig,
        shards: list[InputShard],
        config: AnnotateConfig,
        prompt: Prompt,
        question: str,
        annotator: str,
        ledger: Ledger,
    ) -> None:
        self.source, self.shards, self.config = source, shards, config
        self.prompt, self.question, self.annotator, self.ledger = prompt, question, annotator, ledger
        self.tokens = ledger.tokens_used()
        self.errors: Counter[str] = Counter()
        self.over_budget = False
        self._outage = 0

    def documents(self, rejects: RejectsLog) -> Iterator[tuple[str, str]]:
        """Each document's id and text, in input order; an id that comes again is rejected, not asked again."""
        seen: set[str] = set()
        for shard in self.shards:
            for table in read_shard(shard, self.source, rejects):
                for document_id, text in zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True):
                    if document_id in seen:
                        rejects.add(shard.uri, document_id, "duplicate_id", "an earlier document has this id")
                        continue
                    seen.add(document_id)
                    yield document_id, text

    def keys(self, document_id: str, text: str) -> list[Key]:
        """One key for each vote on a document."""
        digest = text_id(text)
        return [Key(document_id, digest, self.question, vote) for vote in range(self.config.votes)]

    def open_calls(self) -> Iterator[tuple[Key, str]]:
        """The calls that no earlier run has finished."""
        for document_id, text in self.documents(RejectsLog()):
            for key in self.keys(document_id, text):
                if not self.ledger.has_score(key):
                    yield key, text

    def ask_all(self, settings: Settings) -> None:
        """Ask what is open. Starts the embedded judge only when something is."""
        calls = self.open_calls()
        first = next(calls, None)
        if first is None:
            return
        with open_endpoint(self.config, settings) as endpoint:
            asyncio.run(self._ask(endpoint, first, calls))

    def _open_count(self) -> int | None:
        rows = known_rows(self.shards)
        done = self.ledger.counts(self.question).get("scored", 0)
        return None if rows is None else max(rows * self.config.votes - done, 0)

    async def _ask(self, endpoint: Endpoint, first: tuple[Key, str], calls: Iterator[tuple[Key, str]]) -> None:
        queue: asyncio.Queue[tuple[Key, str] | None] = asyncio.Queue(maxsize=2 * self.config.max_concurrency)
        with progress(f"Annotating with {endpoint.annotator}", self._open_count()) as bar:
            async with Judge(endpoint, self.config) as judge:

                async def work() -> None:
                    while (call := await queue.get()) is not None:
                        await self._answer(judge, *call)
                        bar.advance()

                async def feed() -> None:
                    call: tuple[Key, str] | None = first
                    while call is not None and not self._spent():
                        await queue.put(call)
                        call = next(calls, None)
                    for _ in range(self.config.max_concurrency):
                        await queue.put(None)

                try:
                    async with asyncio.TaskGroup() as group:
                        group.create_task(feed())
                        for _ in range(self.config.max_concurrency):
                            group.create_task(work())
                except* MlFilterError as errors:
                    raise errors.exceptions[0] from None

    def _spent(self) -> bool:
        budget = self.config.budget_tokens
        self.over_budget = budget is not None and self.tokens >= budget
        return self.over_budget

    async def _answer(self, judge: Judge, key: Key, text: str) -> None:
        if self._spent():
            return
        row: dict[str, Any] = dict.fromkeys(ANNOTATION_SCHEMA.names)
        row |= {
            "document_id": key.document_id,
            "annotator": self.annotator,
            "prompt": self.prompt.name,
            "prompt_digest": self.prompt.digest,
            "vote": key.vote,
            "status": "failed",
        }
        answer: Answer | None = None
        try:
            answer = await judge.ask(self.prompt, text, key.vote)
            self._outage = 0
            verdict = read_verdict(answer, self.prompt)
            row |= {
                "status": "scored",
                "score": verdict.score,
                "expected_score": verdict.expected_score,
                "reason": verdict.reason,
            }
        except AnswerError as error:
            row |= {"error": error.code, "reason": str(error)}
        except JudgeError as error:
            attempts = 1 + self.config.max_retries if error.outage else 1  # only an outage is tried again
            row |= {"error": error.code, "reason": str(error), "attempts": attempts}
            self._count_outage(error, judge)
        if answer is not None:
            row |= {
                "raw": answer.text,
                "prompt_tokens": answer.prompt_tokens,
                "completion_tokens": answer.completion_tokens,
                "latency_s": answer.latency_s,
                "attempts": answer.attempts,
            }
            self.tokens += answer.prompt_tokens + answer.completion_tokens
        row["created_at"] = datetime.now(UTC).isoformat()
        if row["error"]:
            self.errors[row["error"]] += 1
            logger.debug(f"{key.document_id}: {row['error']}: {row['reason']}")
        self.ledger.record(key, row)

    def _count_outage(self, error: JudgeError, judge: Judge) -> None:
        if not error.outage:
            self._outage = 0  # a refusal is an answer too
            return
        self._outage += 1
        if self._outage >= max(_OUTAGE_AFTER, 2 * self.config.max_concurrency):
            raise EndpointError(
                f"{judge.endpoint.base_url} has not answered {self._outage} requests in a row (last: {error.code}: "
                f"{error}). Finished answers are kept; run the same command again when it is back"
            )

    def collect(self, write: Any, rejects: RejectsLog) -> dict[str, int]:
        """Write the ledger's answers in input order and count them."""
        counts: Counter[str] = Counter(documents=0, scored=0, failed=0, prompt_tokens=0, completion_tokens=0)
        rows: list[dict[str, Any]] = []
        for document_id, text in self.documents(rejects):
            counts["documents"] += 1
            for key in self.keys(document_id, text):
                row = self.ledger.get(key)
                if row is None:
                    raise InputError(f"{document_id} changed or was added while it was annotated; run again")
                counts[row["status"]] += 1
                counts["prompt_tokens"] += row["prompt_tokens"] or 0
                counts["completion_tokens"] += row["completion_tokens"] or 0
                rows.append(row)
            if len(rows) >= _WRITE_ROWS:
                write(pa.Table.from_pylist(rows, schema=ANNOTATION_SCHEMA))
                rows = []
        if rows:
            write(pa.Table.from_pylist(rows, schema=ANNOTATION_SCHEMA))
        if counts["documents"] == 0:
            raise InputError(f"no document could be read from {', '.join(self.source.paths)}: {dict(rejects.counts)}")
        return dict(counts)
