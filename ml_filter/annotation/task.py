"""A task: which questions are put to an LLM about documents, and how the answers become rows of the output.

Scores (annotate.py), labels (label/) and translations (translate/) are tasks. How questions are planned, asked,
recorded and collected does not depend on the task.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import pyarrow as pa

from ml_filter.annotation.annotator import Annotator
from ml_filter.annotation.ledger import Key
from ml_filter.annotation.parsing import Answer
from ml_filter.annotation.prompts import Question
from ml_filter.annotation.windows import Windows
from ml_filter.documents.output_directory import OutputDirectory
from ml_filter.documents.readers import InputShard


class Call(NamedTuple):
    """One request to make: a question about one window of a document. `truncated`: part of the text is left out."""

    key: Key
    question: Question
    piece: str
    window: int
    windows: int
    truncated: bool


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
    questions: Sequence[Question]

    @property
    @abstractmethod
    def identity(self) -> Mapping[str, Any]:
        """What identifies the questions in the manifest; a change means another output."""

    def questions_for(self, language: str | None) -> Sequence[Question]:
        """The questions about a document in `language`, a short code; None if the document does not say."""
        return self.questions

    async def windows(self, annotator: Annotator, question: Question) -> Windows:
        """How documents are cut for a question."""
        return await annotator.windows(question)

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
