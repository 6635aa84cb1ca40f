"""Planning: which questions have to be asked about which documents, and which of them are still open.

A task says what is asked and how answers become rows: scores (annotate.py), labels (label.py) or translations
(translate/). How questions are planned, asked, recorded and collected does not depend on the task.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any, ClassVar, NamedTuple

import pyarrow as pa

from ml_filter.annotation.annotator import Annotator
from ml_filter.annotation.config import AskConfig
from ml_filter.annotation.failures import RequestFailed
from ml_filter.annotation.ledger import Key, Ledger
from ml_filter.annotation.prompts import Question, language_code
from ml_filter.annotation.responses import Answer
from ml_filter.annotation.windows import Windows
from ml_filter.documents.config import SourceConfig
from ml_filter.documents.manifest import digest_of
from ml_filter.documents.output_directory import OutputDirectory
from ml_filter.documents.readers import InputShard, known_rows, text_id
from ml_filter.documents.rejects import RejectsLog
from ml_filter.documents.sources import list_shards
from ml_filter.documents.unique import UniqueIds

_READ_AHEAD = 256
_ANSWER_SETTINGS = {
    *("votes", "temperature", "top_p", "seed", "extra_body", "structured", "tokenizer", "context_tokens"),
    *("chat_template", "add_generation_prompt", "long_documents", "max_windows", "combine_windows"),
}
_APPLIED_AFTER_ANSWERS = {"votes", "combine_windows"}
"""Settings that do not affect a single answer, so that answers in the ledger stay valid when these change."""


def answer_settings(config: AskConfig) -> dict[str, Any]:
    """The settings that shape answers, besides prompt and model."""
    return config.model_dump(mode="json", include=_ANSWER_SETTINGS)


class Call(NamedTuple):
    """One request to make: a question about one window of a document. `truncated`: part of the text is left out.

    `refused`: why it is not made, and has failed.
    """

    key: Key
    question: Question
    piece: str
    window: int
    windows: int
    truncated: bool
    refused: RequestFailed | None = None


class Task(ABC):
    """Questions about documents and how to read and write their answers.

    Class attributes: kind of the output directory, name of its shard, status of a usable answer, the verb of the
    progress bar, and the schema of the shard (None: taken from its tables).
    """

    kind: ClassVar[str]
    shard: ClassVar[str]
    done: ClassVar[str]
    doing: ClassVar[str]
    schema: ClassVar[pa.Schema | None]
    votes = 1
    kept_from: str | None = None
    """As of `Windows`."""
    questions: Sequence[Question]

    @property
    @abstractmethod
    def identity(self) -> Mapping[str, Any]:
        """What identifies the questions in the manifest; a change means another output."""

    def choices(self, documents: pa.Table) -> Sequence[str | None]:
        """What chooses the questions about each document: its language, a short code; None if it does not say."""
        return _language_codes(documents)

    def questions_for(self, choice: str | None) -> Sequence[Question]:
        """The questions about a document with this choice."""
        return self.questions

    async def windows(self, annotator: Annotator, question: Question) -> Windows:
        """How documents are cut for a question."""
        windows = await annotator.windows(question)
        windows.kept_from = self.kept_from
        return windows

    @abstractmethod
    def read(self, answer: Answer, call: Call) -> dict[str, Any]:
        """The fields of the row that an answer gives.

        Raises:
            AnswerError: the answer cannot be used; the row is `failed` with the error's code.
        """

    def join(self, answers: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """One row from the answers about all windows of a document; one failed window fails the row."""
        if len(answers) == 1:
            return answers[0]
        row = dict(next((answer for answer in answers if answer["error"]), answers[0]))
        for name in ("prompt_tokens", "completion_tokens", "latency_s", "attempts"):
            values = [answer[name] for answer in answers if answer[name] is not None]
            row[name] = sum(values) if values else None
        row["raw"] = "\n\n".join(answer["raw"] or "" for answer in answers)
        row["created_at"] = max(answer["created_at"] for answer in answers)
        return row

    def table(
        self, shard: InputShard, documents: pa.Table, rows: list[dict[str, Any]], counts: Counter[str]
    ) -> pa.Table:
        """The output for a table of documents and the rows of their answers; may add to the counts of the manifest."""
        return pa.Table.from_pylist(rows, schema=self.schema)

    def write_report(self, out: OutputDirectory, annotator: str) -> None:  # noqa: B027
        """Write further files after the last table."""


class Vote(NamedTuple):
    """One answer to get: a question about a document, and the key of its answer in the ledger."""

    question: Question
    key: Key
    text: str


class Plan:
    """All votes of a run in input order. Reads documents; asks and writes nothing.

    Attributes:
        identity: everything that the output depends on besides the documents, for its manifest.
        parents: manifests of the input.
    """

    def __init__(self, source: SourceConfig, config: AskConfig, task: Task, annotator: str) -> None:
        self.source, self.config, self.task, self.annotator = source, config, task, annotator
        self.shards, self.parents = list_shards(source)
        settings = answer_settings(config)
        if task.kept_from is not None:
            settings["kept_from"] = task.kept_from
        self.identity = {
            "source": source.model_dump(mode="json"), **task.identity, "annotator": annotator, **settings
        }  # fmt: skip
        shaping = {name: value for name, value in settings.items() if name not in _APPLIED_AFTER_ANSWERS}
        self._digests = {
            question.digest: digest_of([question.digest, annotator, shaping]) for question in task.questions
        }

    @property
    def question_digests(self) -> list[str]:
        """The `question` part of the ledger keys of this run."""
        return list(self._digests.values())

    @property
    def total_votes(self) -> int | None:
        """How many votes there are at most; None if the number of documents is unknown."""
        documents = known_rows(self.shards)
        return None if documents is None else documents * self.task.votes * len(self.task.questions_for(None))

    def tables(self, rejects: RejectsLog) -> Iterator[tuple[InputShard, pa.Table]]:
        """The documents in input order, also those without a text; a document that is read again is rejected."""
        with UniqueIds() as ids:
            for shard, table, is_new in ids.read(self.shards, self.source, rejects):
                for row in [row for row, new in enumerate(is_new) if not new]:
                    document_id = table["id"][row].as_py()
                    rejects.add(shard.uri, document_id, "duplicate_id", "an earlier document has this id and text")
                yield shard, table.filter(pa.array(is_new, pa.bool_()))

    def votes(self, table: pa.Table) -> Iterator[Vote]:
        """The votes on each document of a table."""
        rows = zip(table["id"].to_pylist(), table["text"].to_pylist(), self.task.choices(table), strict=True)
        for document_id, text, choice in rows:
            digest = text_id(text)
            for question in self.task.questions_for(choice):
                for vote in range(self.task.votes):
                    yield Vote(question, Key(document_id, digest, self._digests[question.digest], vote), text)


def _language_codes(table: pa.Table) -> list[str | None]:
    if "language" not in table.column_names:
        return [None] * table.num_rows
    languages = table["language"].to_pylist()
    codes = {language: language_code(language) for language in set(languages) if isinstance(language, str)}
    return [codes.get(language) for language in languages]


class OpenCalls:
    """The calls of a plan that have no answer in the ledger yet, in input order; can be iterated once.

    Attributes:
        finished: votes without an open call that were passed since the caller last reset this count.
    """

    def __init__(self, plan: Plan, ledger: Ledger) -> None:
        self.plan, self.ledger, self.finished = plan, ledger, 0
        self._windows: dict[str, Windows] = {}
        self._votes = self._open_votes()
        first = next(self._votes, None)
        self.is_empty = first is None
        if first is not None:
            self._votes = chain([first], self._votes)

    def _open_votes(self) -> Iterator[tuple[Vote, dict[int, str]]]:
        for _, table in self.plan.tables(RejectsLog()):
            for vote in self.plan.votes(table):
                statuses = self.ledger.statuses(vote.key) if vote.text else {0: self.plan.task.done}
                if not statuses or any(self._is_open(status) for status in statuses.values()):
                    yield vote, statuses
                else:
                    self.finished += 1

    def _is_open(self, status: str) -> bool:
        return status == "open" or (status == "failed" and self.plan.config.retry_failed)

    async def by_vote(self, windows_for: Callable[[Question], Awaitable[Windows]]) -> AsyncIterator[list[Call]]:
        """The open calls of each open vote; `windows_for` is called once for each question."""
        # In a thread, so that reading shards and looking up the ledger do not block the event loop.
        while batch := await asyncio.to_thread(lambda: list(islice(self._votes, _READ_AHEAD))):
            for vote, statuses in batch:
                if vote.question.digest not in self._windows:
                    self._windows[vote.question.digest] = await windows_for(vote.question)
                yield await self._calls(vote, statuses, self._windows[vote.question.digest])

    async def _calls(self, vote: Vote, statuses: dict[int, str], windows: Windows) -> list[Call]:
        try:
            pieces, truncated = await windows.pieces(vote.text)
        except RequestFailed as error:
            return [Call(vote.key, vote.question, "", 0, 1, False, error)]
        if statuses and len(statuses) != len(pieces):
            # The endpoint reports another context length than before: the old answers are about other windows.
            self.ledger.forget(vote.key)
            statuses = {}
        return [
            Call(vote.key, vote.question, piece, number, len(pieces), truncated)
            for number, piece in enumerate(pieces)
            if self._is_open(statuses.get(number, "open"))
        ]
