"""Recording: read an answer, or the reason why there is none, and put it into the ledger."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

from loguru import logger

from ml_filter.annotation.budget import NO_TOKENS, Usage
from ml_filter.annotation.client import RequestFailed
from ml_filter.annotation.ledger import Key, Ledger
from ml_filter.annotation.parsing import Answer, AnswerError
from ml_filter.annotation.plan import Plan
from ml_filter.annotation.prompts import Question
from ml_filter.annotation.task import Call
from ml_filter.documents.schema import ANNOTATION_SCHEMA


def failed_row(annotator: str, question: Question, key: Key, **fields: Any) -> dict[str, Any]:
    """A row without an answer; `fields` say why."""
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

    def __init__(self, plan: Plan, ledger: Ledger) -> None:
        self.plan, self.ledger, self.failed = plan, ledger, 0

    def record(
        self, call: Call, outcome: Answer | RequestFailed, used: Usage | None, assumed: Usage = NO_TOKENS
    ) -> None:
        """Write one outcome with the tokens of all its tries: `used` as reported, `assumed` without a report."""
        task = self.plan.task
        row = failed_row(
            self.plan.annotator, call.question, call.key, windows=call.windows, truncated=call.truncated
        ) | {"attempts": outcome.attempts}
        if used is not None:
            row |= {"prompt_tokens": int(used.prompt), "completion_tokens": int(used.completion)}
        if isinstance(outcome, RequestFailed):
            row |= {"error": outcome.code, "reason": str(outcome)}
        else:
            row |= {"raw": outcome.text, "latency_s": outcome.latency_s}
            try:
                row |= {"status": task.done, **task.read(outcome, call)}
            except AnswerError as error:
                row |= {"error": error.code, "reason": str(error)}
        if row["error"]:
            self.failed += 1
            logger.debug(f"{call.key.document_id}: {row['error']}: {row['reason']}")
        self.ledger.record(call.key, call.window, row, (math.ceil(assumed.prompt), math.ceil(assumed.completion)))
