"""Evaluate answers: questions are answered as by `ask`, and an LLM rates the answers and their sources.

Whatever the LLM writes goes through a ledger: what it answered is read from there, and never paid for twice. The
ratings are ordinary annotations (faithfulness, answer relevancy, context precision and context recall, from 1 to 4).
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import BaseModel

from ml_filter.annotation.annotate import annotate_documents
from ml_filter.annotation.budget import Budget
from ml_filter.annotation.config import AnnotateConfig, AskConfig
from ml_filter.annotation.connection import annotator_name
from ml_filter.annotation.generate import GenerationPrompt, load_generation_prompt, read_fields
from ml_filter.annotation.grammar import AnswerError
from ml_filter.annotation.ledger import Key, Ledger, open_ledger
from ml_filter.annotation.plan import Call, Plan, Task
from ml_filter.annotation.prompts import Question, keep_prompts
from ml_filter.annotation.responses import Answer as ModelAnswer
from ml_filter.annotation.run import FAILED_NAME, NOT_ASKED, Recorder, budget_of, check_failed_share, ledger_location
from ml_filter.config import Settings
from ml_filter.documents.config import SourceConfig
from ml_filter.documents.derived import derive_documents, read_rows_of
from ml_filter.documents.manifest import Manifest, Parent
from ml_filter.documents.output_directory import OutputDirectory
from ml_filter.documents.readers import text_id
from ml_filter.downstream.retrieval.answer import (
    REFUSED,
    Answerer,
    NoAnswer,
    load_answer_prompt,
    read_text,
)
from ml_filter.downstream.retrieval.config import AnswerConfig, RetrievalEvaluationConfig, SearchConfig
from ml_filter.downstream.retrieval.guards import with_answer
from ml_filter.downstream.retrieval.index import Index
from ml_filter.downstream.retrieval.questions import read_questions
from ml_filter.errors import MlFilterError, TooManyFailures
from ml_filter.progress import progress
from ml_filter.statistics.intervals import Figure, Resampling, mean_figure, too_few

PROMPTS = ("answer_faithfulness", "answer_relevancy", "context_precision", "context_recall")
_RETRY_HINT = "run again"
_SHARD = "answers"
_BATCH = 256
_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("id", "question", "answer", "context", "status", "error", "reason")),
        ("sources", pa.list_(pa.string())),
        ("citations_removed", pa.int64()),
    ]
)


class Rating(BaseModel):
    """The mean of the ratings from 1 to 4 with its interval, and how many ratings failed, which are not in it."""

    mean: Figure
    failed: int


class AnswersEvaluation(BaseModel):
    """How questions were answered, and what the answers were rated.

    Attributes:
        questions: sum of `answered`, `refused` (taken for an injection), `without_context` (the index has nothing on
            them) and `failed` (without a usable answer of the LLM). Only the first are rated.
        ratings: by criterion.
    """

    annotator: str
    questions: int
    answered: int
    refused: int
    without_context: int
    failed: int
    ratings: dict[str, Rating]

    @property
    def has_failures(self) -> bool:
        """Whether an answer or a rating failed."""
        return bool(self.failed or any(rating.failed for rating in self.ratings.values()))

    @property
    def summary(self) -> str:
        """One sentence on the questions."""
        return (
            f"{self.answered:,} of {self.questions:,} questions were answered; the index has nothing on "
            f"{self.without_context:,}, {self.refused:,} were refused, and {self.failed:,} failed"
        )

    def figures(self) -> dict[str, float]:
        """The figures as flat numbers, for trackers."""
        means = {f"retrieval_{name}": rating.mean.value for name, rating in self.ratings.items()}
        counts = ("answered", "refused", "without_context", "failed")
        return {f"retrieval_{name}": float(getattr(self, name)) for name in counts} | {
            name: mean for name, mean in means.items() if mean is not None
        }


class _AnswerTask(Task):
    """All that an LLM is asked to answer questions."""

    kind, shard, done, doing = "answers", _SHARD, "answered", "Answering"
    schema = _SCHEMA

    def __init__(self, size: int, search: SearchConfig, config: AnswerConfig) -> None:
        chosen = {
            "retrieval_paraphrases": config.expand,
            "retrieval_passage": config.hyde,
            "retrieval_conditions": config.self_query,
        }
        expansions = [load_generation_prompt(name) for name, is_on in chosen.items() if is_on]
        self.questions: Sequence[Question] = [load_answer_prompt(config.prompt), *expansions]
        self._setup = {
            "size": size,
            "search": search.model_dump(mode="json"),
            **config.model_dump(mode="json", include={"expand", "hyde", "self_query", "guard"}),
        }

    @property
    def identity(self) -> dict[str, Any]:
        prompts = [{"name": question.name, "digest": question.digest} for question in self.questions]
        return {"prompts": prompts, **self._setup}

    def read(self, answer: ModelAnswer, call: Call) -> dict[str, Any]:
        if isinstance(call.question, GenerationPrompt):
            read_fields(answer, call.question)
        else:
            read_text(answer)
        return {}


class _LedgerAnswerer(Answerer):
    """Answers as `ask` does, but looks every question to the LLM up in a ledger first."""

    def __init__(
        self, index: Index, search: SearchConfig, plan: Plan, ledger: Ledger, budget: Budget, settings: Settings
    ) -> None:
        assert isinstance(plan.config, AnswerConfig)
        super().__init__(index, search, plan.config, settings)
        self.budget = budget
        self.paid: Counter[str] = Counter(prompt_tokens=0, completion_tokens=0)
        self._ledger, self._recorder = ledger, Recorder(plan, ledger, _RETRY_HINT)
        digests = (question.digest for question in plan.task.questions)
        self._digests = dict(zip(digests, plan.question_digests, strict=True))
        self._asked: set[Key] = set()

    async def _ask(self, question: Question, piece: str) -> ModelAnswer:
        key = Key(text_id(piece), text_id(piece), self._digests[question.digest], 0)
        rows, _ = self._ledger.answers(key)
        if not rows or (rows[0]["error"] and self.config.retry_failed and key not in self._asked):
            if not self._ledger.has_room():
                await asyncio.to_thread(self._ledger.wait_for_room)
            outcome, spending = await self._outcome(question, piece)
            # No await between the end of a request and its record: a cancelled task cannot lose a paid answer.
            call = Call(key, question, piece, 0, 1, False)
            self._recorder.record(call, outcome, spending.reported, spending.assumed)
            self._asked.add(key)
        [row], paid = self._ledger.answers(key)
        self.paid.update(prompt_tokens=paid.prompt, completion_tokens=paid.completion)
        if row["error"]:
            raise AnswerError(row["error"], row["reason"])
        return ModelAnswer(row["raw"])

    async def answer_all(self, questions: Sequence[str], write: Callable[[list[dict[str, Any]]], None]) -> None:
        """Write a row for each question, in order, some at a time.

        Raises:
            TooManyFailures: the budget is used up.
            EndpointError: no endpoint answers or can be used, or the first answers all fail with the same code.
        """
        async with self:
            with progress("Answering", len(questions)) as bar:

                async def answered(question: str) -> dict[str, Any]:
                    row = await self._row(question)
                    bar.advance()
                    return row

                for first in range(0, len(questions), _BATCH):
                    batch = questions[first : first + _BATCH]
                    outcomes = await asyncio.gather(*map(answered, batch), return_exceptions=True)
                    if error := next((outcome for outcome in outcomes if isinstance(outcome, BaseException)), None):
                        raise error
                    write([outcome for outcome in outcomes if isinstance(outcome, dict)])

    async def _row(self, question: str) -> dict[str, Any]:
        row = dict.fromkeys(_SCHEMA.names) | {"id": text_id(question), "question": question}
        try:
            answer = await self.answer(question)
        except NoAnswer as failure:
            if failure.code != NOT_ASKED or self.config.at_budget == "finish":
                return row | {"status": "failed", "error": failure.code, "reason": str(failure)}
            error: MlFilterError = TooManyFailures(
                f"{failure}. Run again with a higher budget; the answers so far are kept and are not asked for again"
            )
            self._stop(error)
            raise error from failure
        except MlFilterError as error:
            self._stop(error)
            raise
        if not answer.answered:
            return row | {"status": "refused" if answer.text == REFUSED else "without_context"}
        return row | {
            "status": "answered",
            "answer": answer.text,
            "context": answer.context,
            "sources": [source.document_id for source in answer.sources],
            "citations_removed": answer.citations_removed,
        }

    def _stop(self, error: MlFilterError) -> None:
        """Ask nothing more; requests in flight are still recorded, because they may have to be paid for."""
        if self._model is not None:
            self._model.pool.stop(error)


def answering_plan(
    questions: SourceConfig, size: int, search: SearchConfig, config: AnswerConfig, settings: Settings
) -> Plan:
    """What is asked to answer the first `size` questions; its `identity` has all that the answers depend on.

    Raises:
        ConfigError: a prompt or a setting is wrong.
    """
    return Plan(questions, config, _AnswerTask(size, search, config), annotator_name(config, settings))


def evaluate_answers(
    index: Index,
    plan: Plan,
    search: SearchConfig,
    config: RetrievalEvaluationConfig,
    output: str,
    settings: Settings,
) -> AnswersEvaluation:
    """Answer the first different questions as `ask` does, and let the LLM rate the answers.

    Args:
        plan: of `answering_plan`, with the search and the number of questions of the configurations.

    Writes below `output`: the answers, the rated texts, and the annotations.

    Raises:
        InputError, ConfigError, TooManyFailures, EndpointError: see `read_questions` and `annotate_documents`.
    """
    answers = _answer(index, plan, config.answers, search, output, settings)
    names = ("id", "question", "answer", "context", "status")
    rated = derive_documents(answers, names, _text_to_rate, f"{output}/rated-{{digest}}")
    scores: dict[str, list[float]] = {name: [] for name in PROMPTS}
    failed: Counter[str] = Counter()
    if rated.rows:
        asking = plan.config.model_dump(include=set(AskConfig.model_fields))
        annotate = AnnotateConfig.model_validate({**asking, "prompts": list(PROMPTS)})
        source = SourceConfig(paths=[rated.root])
        directory = f"{output}/ratings-{{digest}}"
        annotations = annotate_documents(source, annotate, directory, settings, ledgers=_ledgers(output))
        for row in read_rows_of(annotations, ("criterion", "score")):
            if row["score"] is None:
                failed[row["criterion"]] += 1
            else:
                scores[row["criterion"]].append(row["score"])
    resampling = Resampling(confidence=config.confidence, resamples=config.resamples)
    counts = answers.counts
    return AnswersEvaluation(
        annotator=plan.annotator,
        **{name: counts[name] for name in ("questions", "answered", "refused", "without_context", "failed")},
        ratings={
            name: Rating(mean=mean_figure(np.array(values), resampling) if values else too_few(0), failed=failed[name])
            for name, values in scores.items()
        },
    )


def _answer(
    index: Index, plan: Plan, size: int | None, search: SearchConfig, output: str, settings: Settings
) -> Manifest:
    parents = [Parent(path=index.manifest.root, digest=index.manifest.digest), *plan.parents]
    with OutputDirectory(f"{output}/answers-{{digest}}", plan.task.kind, plan.identity, parents) as out:
        if out.manifest and not (plan.config.retry_failed and out.manifest.counts["failed"]):
            return out.manifest
        if out.manifest:
            out.reopen()
        keep_prompts(out, plan.task.questions)
        questions = list(islice(dict.fromkeys(question for question, _ in read_questions(plan.source)), size))
        names = ("answered", "refused", "without_context", "failed", "citations_removed")
        counts: Counter[str] = Counter({"questions": len(questions), **dict.fromkeys(names, 0)})
        with (
            open_ledger(ledger_location(plan, out.location, _ledgers(output)), plan.config) as ledger,
            out.new_shard(_SHARD, _SCHEMA) as writer,
            out.new_rejects(_SHARD) as rejects,
            (out.scratch / FAILED_NAME).open("w", encoding="utf-8") as failed,
        ):

            def write(rows: list[dict[str, Any]]) -> None:
                for row in rows:
                    counts[row["status"]] += 1
                    counts["citations_removed"] += row["citations_removed"] or 0
                    if row["error"]:
                        counts[f"failed_{row['error']}"] += 1
                        listed = {"document_id": row["id"], "error": row["error"], "reason": row["reason"]}
                        failed.write(json.dumps(listed, ensure_ascii=False) + "\n")
                writer.write(pa.Table.from_pylist(rows, schema=_SCHEMA))

            budget = budget_of(plan, ledger, out, _ledgers(output))
            answerer = _LedgerAnswerer(index, search, plan, ledger, budget, settings)
            asyncio.run(answerer.answer_all(questions, write))
            ledger.flush()
        out.put_file(out.scratch / FAILED_NAME, FAILED_NAME)
        check_failed_share(plan, counts, out.path, _RETRY_HINT)
        return out.finish([(_SHARD, out.commit(_SHARD, writer, rejects, {**counts, **answerer.paid}))])


def _ledgers(output: str) -> str:
    """Other numbers of questions or ways of searching are other directories of answers and ratings, which share it."""
    return f"{output}/ledgers"


def _text_to_rate(row: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if row["status"] == "answered":
        yield row["id"], with_answer(row["context"], row["answer"])
