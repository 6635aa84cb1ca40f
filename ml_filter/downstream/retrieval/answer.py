"""Answer a question from an index: search, ask an LLM with the passages, and check what it writes."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

from loguru import logger
from pydantic import BaseModel, Field, ValidationError

from ml_filter.annotation.annotator import Annotator, body_to_send, request_for
from ml_filter.annotation.budget import Budget, Spending
from ml_filter.annotation.client import Endpoint
from ml_filter.annotation.connection import annotator_name, open_endpoints
from ml_filter.annotation.endpoints import EndpointPool
from ml_filter.annotation.failures import RequestFailed
from ml_filter.annotation.generate import load_generation_prompt, read_fields
from ml_filter.annotation.grammar import AnswerError
from ml_filter.annotation.ledger import Key
from ml_filter.annotation.plan import Call
from ml_filter.annotation.prompt_files import PROMPTS, shipped_file
from ml_filter.annotation.prompts import Question
from ml_filter.annotation.reasoning import first_mark, without_reasoning
from ml_filter.annotation.responses import Answer as ModelAnswer
from ml_filter.annotation.run import NOT_ASKED
from ml_filter.annotation.traces import Traces
from ml_filter.config import Settings, problems_in, read_yaml
from ml_filter.documents.readers import text_id
from ml_filter.downstream.retrieval.config import AnswerConfig, SearchConfig, Where
from ml_filter.downstream.retrieval.guards import (
    check_citations,
    is_injection,
    mask_personal_data,
    sources_text,
)
from ml_filter.downstream.retrieval.index import Index
from ml_filter.downstream.retrieval.search import Result, Searcher
from ml_filter.errors import ConfigError, EndpointError

NO_CONTEXT = "The index has nothing on this question, so the LLM was not asked."
REFUSED = "The question looks like an attempt to give the LLM instructions, so it was not asked."
_EXCERPT_CHARS = 300
_OPEN_MARK = re.compile(r"<[^<>\n]{0,40}\Z")
_SENTENCE_END = re.compile(r"(?<=[.!?\]])\s+|\n+")


class NoAnswer(EndpointError):
    """The LLM gave no usable answer, or the budget is used up (`not_asked`); `code` is that of a failed annotation."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class Source(BaseModel):
    """A passage that the LLM was given; `number` is that of its citations."""

    number: int
    document_id: str
    url: str | None
    similarity: float
    excerpt: str


class Answer(BaseModel):
    """An answer and how it came about.

    Attributes:
        text: with citations such as [1]; or why there is no answer.
        answered: whether the LLM was asked.
        cited: numbers of the sources that it cites.
        citations_removed: citations of sources that were not given.
        masked: how many e-mail addresses, phone numbers, IBANs and card numbers were masked, by kind.
        injections: documents left out of the sources because a passage of theirs gives instructions to a model.
        conditions: those that the LLM found in the question; `conditions_dropped`: those that cannot be used, and why.
        context: the question and the sources as the LLM was given them; not in the JSON of an answer.
    """

    question: str
    text: str
    answered: bool
    annotator: str | None = None
    prompt_digest: str | None = None
    sources: list[Source] = []
    cited: list[int] = []
    citations_removed: int = 0
    masked: dict[str, int] = {}
    injections: list[str] = []
    conditions: list[str] = []
    conditions_dropped: list[str] = []
    context: str = Field("", exclude=True)


@dataclass
class _Found:
    results: list[Result]
    injections: list[str]
    conditions: list[str]
    dropped: list[str]


class Answerer:
    """Answers questions from one index, with the endpoints of the settings or the embedded annotator.

    The LLM is connected to by the first question that needs it. Use as an asynchronous context manager.

    Raises:
        ConfigError: the prompt or a setting is wrong.
    """

    def __init__(self, index: Index, search: SearchConfig, config: AnswerConfig, settings: Settings) -> None:
        self.searcher = Searcher(index, search)
        self.config, self.settings = config, settings
        self.question = load_answer_prompt(config.prompt)
        self.annotator = annotator_name(config, settings)
        self.budget = Budget(config)
        self._opened = AsyncExitStack()
        self._model: Annotator | None = None
        self._traces: Traces | None = None
        self._connecting = asyncio.Lock()
        self._searching = asyncio.Lock()
        self._template_opens_reasoning: bool | None = None
        """Whether the server's chat template opens the reasoning, so that only its end is in an answer; None: no whole
        answer has shown it yet."""

    async def __aenter__(self) -> Answerer:
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self._opened.aclose()

    async def _connected(self) -> Annotator:
        async with self._connecting:
            if self._model is None:
                endpoints = self._opened.enter_context(open_endpoints(self.config, self.settings))
                pool = await self._opened.enter_async_context(EndpointPool(endpoints, self.config))
                self._traces = self._opened.enter_context(Traces(self.annotator, "answer", self.settings.trace_share))
                self._model = Annotator(pool, self.config)
            return self._model

    # --- Answering ---------------------------------------------------------------------------------------------------

    async def answer(self, question: str, where: Sequence[Where] = ()) -> Answer:
        """The answer to a question.

        Raises:
            NoAnswer: the LLM gives no usable answer, or the budget is used up.
            EndpointError: no endpoint answers or can be used.
        """
        events = [event async for event in self.events(question, where, stream=False)]
        answer = events[-1]
        assert isinstance(answer, Answer)
        return answer

    async def events(
        self, question: str, where: Sequence[Where] = (), *, stream: bool = True
    ) -> AsyncIterator[list[Source] | str | Answer]:
        """The sources, then the text sentence by sentence as the LLM writes it, then the whole answer."""
        if self.config.guard and is_injection(question):
            yield Answer(question=question, text=REFUSED, answered=False)
            return
        found = await self._find(question, where)
        report = {
            "injections": found.injections,
            "conditions": found.conditions,
            "conditions_dropped": found.dropped,
        }
        if not found.results:
            conditions = ", ".join([*map(str, [*self.searcher.config.where, *where]), *found.conditions])
            text = NO_CONTEXT.replace(",", f" under the conditions {conditions},", 1) if conditions else NO_CONTEXT
            yield Answer(question=question, text=text, answered=False, **report)
            return
        piece, used = await self._piece(question, found.results)
        sources = [self._source(number, result) for number, result in enumerate(used, 1)]
        yield sources
        written: list[str] = []
        cited: dict[int, None] = {}
        masked: Counter[str] = Counter()
        removed = 0
        async for sentence in self._sentences(piece, stream=stream):
            checked, numbers, wrong = check_citations(sentence, len(sources))
            if self.config.guard:
                checked, kinds = mask_personal_data(checked)
                masked += kinds
            cited.update(dict.fromkeys(numbers))
            removed += wrong
            written.append(checked)
            yield checked
        yield Answer(
            question=question,
            text="".join(written).strip(),
            answered=True,
            annotator=self.annotator,
            prompt_digest=self.question.digest,
            sources=sources,
            cited=sorted(cited),
            citations_removed=removed,
            masked=dict(masked),
            context=piece,
            **report,
        )

    def _source(self, number: int, result: Result) -> Source:
        passage = " ".join(result.passage.split())
        if self.config.guard:  # before the cut, which may leave part of a number that is not recognized
            passage, _ = mask_personal_data(passage)
        return Source(
            number=number,
            document_id=result.document_id,
            url=result.url,
            similarity=round(result.similarity, 3),
            excerpt=passage[:_EXCERPT_CHARS],
        )

    async def _piece(self, question: str, results: list[Result]) -> tuple[str, list[Result]]:
        """The question with as many sources as fit into the context, at least one."""
        windows = await (await self._connected()).windows(self.question)
        while True:
            sources = [(result.title, result.context) for result in results]
            pieces, truncated = await windows.pieces(sources_text(question, sources))
            if not truncated or len(results) == 1:
                return pieces[0], results
            results = results[:-1]

    async def _sentences(self, piece: str, *, stream: bool) -> AsyncIterator[str]:
        """The answer in sentences, each with the white space after it: personal data is masked in whole ones."""
        pending = ""
        async for part in self._written(piece, stream=stream):
            pending += part
            ends = [match.end() for match in _SENTENCE_END.finditer(pending)]
            if ends:
                yield pending[: ends[-1]]
                pending = pending[ends[-1] :]
        if pending:
            yield pending

    async def _written(self, piece: str, *, stream: bool) -> AsyncIterator[str]:
        """The parts of the answer as they arrive. A stream that fails before its first part is asked for again."""
        model = await self._connected()
        if stream:
            spending = Spending(self.budget, self.question, piece)
            if not await spending.has_room():
                raise self._spent()
            text = ""
            try:
                async for part in self._streamed(model, piece):
                    text += part
                    yield part
                self._trace(self.question, piece, ModelAnswer(text))
                return
            except RequestFailed as failure:
                if text:
                    raise EndpointError(f"the LLM stopped in the middle of its answer: {failure}") from failure
                logger.warning(f"The endpoint does not stream ({failure}); waiting for the whole answer")
            finally:
                spending.end(ModelAnswer(text))
        try:
            answer = await self._ask(self.question, piece)
            self._note_reasoning(answer.text)
            text = read_text(answer)
        except AnswerError as error:
            reason = f"the LLM gave no usable answer ({error.code}: {error})"
            if error.code == "connection_error":
                urls = ", ".join(endpoint.base_url for endpoint in model.pool.endpoints)
                reason = f"{urls} does not answer ({error}); check --endpoint (ML_FILTER_ENDPOINT)"
            raise NoAnswer(error.code, reason) from error
        yield text

    async def _streamed(self, model: Annotator, piece: str) -> AsyncIterator[str]:
        path, body = request_for(self.question, piece, 0, self.config, model.tokenizer)
        endpoint: Endpoint = model.pool.endpoints[0]
        sent = body_to_send(endpoint.model, {**body, "stream": True}, {}, self.config)
        written, sent_chars = "", 0
        async for part in model.pool.client.stream(endpoint, path, sent):
            written += part
            if self._template_opens_reasoning is not False and first_mark(written) is None:
                continue  # all of it may be reasoning: of the first answer, and of a server whose template opens it
            # Without the beginning of a mark of reasoning, which may arrive in parts. Offsets stay (reasoning.py).
            visible = without_reasoning(_OPEN_MARK.sub("", written)) or ""
            if new := visible[sent_chars:] if sent_chars else visible.lstrip():
                yield new
                sent_chars = len(visible)
        self._note_reasoning(written)
        visible = without_reasoning(written) or ""
        if not visible.strip():
            raise EndpointError("the LLM wrote no answer" + (", only reasoning" if written.strip() else ""))
        if rest := visible[sent_chars:] if sent_chars else visible.lstrip():
            yield rest

    def _note_reasoning(self, written: str) -> None:
        """Learn from a whole answer. The template is the same for all, so one that shows it says it of the others."""
        if not self._template_opens_reasoning:
            self._template_opens_reasoning = first_mark(written) == "closes"

    async def _ask(self, question: Question, piece: str) -> ModelAnswer:
        """The answer of the LLM. Raises AnswerError: it gave none; NoAnswer: the budget is used up."""
        outcome, _ = await self._outcome(question, piece)
        if isinstance(outcome, RequestFailed):
            raise AnswerError(outcome.code, str(outcome)) from outcome
        return outcome

    async def _outcome(self, question: Question, piece: str) -> tuple[ModelAnswer | RequestFailed, Spending]:
        model = await self._connected()
        result = await model.ask(question, piece, 0, self.budget)
        if result is None:
            raise self._spent()
        self._trace(question, piece, result[0])
        return result

    def _spent(self) -> NoAnswer:
        return NoAnswer(NOT_ASKED, f"the budget of {self.budget.describe()} is used up")

    def _trace(self, question: Question, piece: str, outcome: ModelAnswer | RequestFailed) -> None:
        if self._traces is not None:
            key = Key(text_id(piece), text_id(piece), question.digest, 0)
            self._traces.add(Call(key, question, piece, 0, 1, False), outcome)

    # --- Searching ---------------------------------------------------------------------------------------------------

    async def _find(self, question: str, where: Sequence[Where]) -> _Found:
        """The passages for a question, without those that give instructions to a model."""
        paraphrases: list[str] = []
        passages: list[str] = []
        conditions: list[Where] = []
        dropped: list[str] = []
        if self.config.expand:
            fields = await self._generated("retrieval_paraphrases", question)
            paraphrases = fields.get("questions", [])[: self.config.expand]
        if self.config.hyde:
            fields = await self._generated("retrieval_passage", question)
            passages = [fields["passage"]] if fields else []
        if self.config.self_query:
            conditions, dropped = await self._conditions(question)
        async with self._searching:  # one search at a time: encoder and store are not for several threads
            search = self.searcher.search
            results = await asyncio.to_thread(search, question, paraphrases, passages, [*where, *conditions])
        injected = [
            result for result in results if self.config.guard and is_injection(f"{result.title}\n{result.context}")
        ]
        if injected:
            logger.warning(f"{len(injected)} passages give instructions to a model and are left out of the sources")
        return _Found(
            results=[result for result in results if result not in injected],
            injections=[result.document_id for result in injected],
            conditions=[str(condition) for condition in conditions],
            dropped=dropped,
        )

    async def _conditions(self, question: str) -> tuple[list[Where], list[str]]:
        """The conditions that the LLM finds in a question, and those that cannot be used, with the reason."""
        columns = ", ".join(self.searcher.columns)
        fields = await self._generated("retrieval_conditions", f"Columns: {columns}\n\nQuestion: {question}")
        usable, dropped = [], []
        for row in fields.get("conditions", []):
            try:
                condition = Where(name=row["name"], op=row["op"], values=[row["value"]])
                problem = self.searcher.problem_with(condition)
            except ValidationError as error:
                problem = problems_in(error, f"{row['name']}{row['op']}{row['value']}")
            if problem:
                logger.warning(f"A condition of the LLM is dropped: {problem}")
                dropped.append(problem)
            else:
                usable.append(condition)
        return usable, dropped

    async def _generated(self, name: str, text: str) -> dict[str, Any]:
        """The fields that the LLM writes about a text; none if its answer cannot be used."""
        prompt = load_generation_prompt(name)
        windows = await (await self._connected()).windows(prompt)
        pieces, _ = await windows.pieces(text)
        try:
            return read_fields(await self._ask(prompt, pieces[0]), prompt)
        except AnswerError as error:
            logger.warning(f"The LLM's answer to {name} cannot be used ({error.code}: {error}); searching without it")
            return {}


def read_text(answer: ModelAnswer) -> str:
    """The text of an answer. Raises AnswerError: it is only reasoning."""
    text = without_reasoning(answer.text) or ""
    if not text.strip():
        raise AnswerError(
            "only_reasoning", "the LLM wrote only reasoning" if answer.text.strip() else "it wrote nothing"
        )
    return text


def load_answer_prompt(name_or_file: str) -> Question:
    """Load the prompt of answers by the name of a shipped one (configs/prompts/retrieval) or the path of a YAML file.

    Raises:
        ConfigError: the prompt does not exist, or a field of the file is invalid.
    """
    path = shipped_file(name_or_file, PROMPTS / "retrieval", "answer prompt")
    content = read_yaml(path)
    try:
        return Question.model_validate({"criterion": content.get("name"), "language": "en", **content})
    except ValidationError as error:
        raise ConfigError(f"prompt file {path}: {problems_in(error, 'prompt')}") from error
