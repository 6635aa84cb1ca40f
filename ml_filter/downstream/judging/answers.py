"""The answers of a model to tasks, as free text: a schema would change what a tuned model writes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import pyarrow as pa

from ml_filter.annotation.asking import Asking
from ml_filter.annotation.config import AskConfig
from ml_filter.annotation.connection import annotator_name
from ml_filter.annotation.grammar import AnswerError
from ml_filter.annotation.plan import Call, Plan, Task
from ml_filter.annotation.prompts import SLOT, Question
from ml_filter.annotation.reasoning import without_reasoning
from ml_filter.annotation.responses import Answer
from ml_filter.annotation.run import run
from ml_filter.config import Settings
from ml_filter.documents.config import SourceConfig
from ml_filter.documents.manifest import Manifest, Parent
from ml_filter.documents.readers import InputShard

ANSWERED = "answered"


def answer_tasks(
    tasks: Manifest,
    model: Parent,
    max_tokens: int,
    config: AskConfig,
    output: str,
    settings: Settings,
    ledgers: str | None = None,
) -> Manifest:
    """What a model answers to the `text` of each task.

    Answers are kept by the digest of the model: another one may be served under the same name.

    Writes all columns of the tasks, `answer` (null if it failed), `cut_off`, `answered_by` and `answer_error`.

    Raises:
        TooManyFailures, EndpointError: see `run`.
    """
    name = annotator_name(config, settings)
    plan = Plan(SourceConfig(paths=[tasks.root]), config, _AnswerTask(model.digest, max_tokens, name), name)
    return run(plan, Asking(settings), output, ledgers)


class _AnswerTask(Task):
    kind, shard, done, doing = "answers", "answers", ANSWERED, "Answering"
    schema = None

    def __init__(self, digest: str, max_tokens: int, model: str) -> None:
        self.model = model
        self.questions: Sequence[Question] = [
            Question(
                name=f"task_{digest[:16].lower()}",
                criterion="answer",
                language="en",
                text=SLOT,
                max_tokens=max_tokens,
                top_logprobs=0,
                max_text_chars=10**9,
            )
        ]

    @cached_property
    def identity(self) -> Mapping[str, Any]:
        return {"question": self.questions[0].digest}

    def read(self, answer: Answer, call: Call) -> dict[str, Any]:
        text = without_reasoning(answer.text)
        if not (text or "").strip():
            raise AnswerError("only_reasoning" if answer.text.strip() else "empty_answer", "the answer has no text")
        return {"answer": text, "cut_off": answer.cut_off}

    def table(
        self, shard: InputShard, documents: pa.Table, rows: list[dict[str, Any]], counts: Counter[str]
    ) -> pa.Table:
        by_id = {row["document_id"]: row for row in rows}
        results = [by_id.get(task_id, {}) for task_id in documents["id"].to_pylist()]
        counts["cut_off"] += sum(bool(row.get("cut_off")) for row in results)
        added: dict[str, tuple[list[Any], pa.DataType]] = {
            "answer": ([row.get("answer") for row in results], pa.string()),
            "cut_off": ([row.get("cut_off") for row in results], pa.bool_()),
            "answered_by": ([self.model if row.get("status") == self.done else None for row in results], pa.string()),
            "answer_error": ([row.get("error") for row in results], pa.string()),
        }
        for name, (values, kind) in added.items():
            documents = documents.append_column(name, pa.array(values, kind))
        return documents
