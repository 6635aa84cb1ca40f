"""Annotate documents: an LLM scores each document against prompts, and every answer is kept."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from ml_filter.annotation.asking import Asking
from ml_filter.annotation.config import AnnotateConfig
from ml_filter.annotation.connection import annotator_name
from ml_filter.annotation.parsing import read_verdict
from ml_filter.annotation.plan import Call, Plan, Task
from ml_filter.annotation.prompts import Prompt, load_prompt, prompts_by_criterion
from ml_filter.annotation.responses import Answer
from ml_filter.annotation.run import run
from ml_filter.annotation.windows import combine
from ml_filter.config import Settings
from ml_filter.documents.config import SourceConfig
from ml_filter.documents.lineage import criteria_config
from ml_filter.documents.manifest import Manifest
from ml_filter.documents.schema import ANNOTATION_SCHEMA


class _ScoreTask(Task):
    """Scores for the criteria of prompts. A document gets, for each criterion, the prompt in its language or the first.

    Raises:
        ConfigError: a prompt does not exist or is invalid, or prompts of one criterion do not fit together.
    """

    kind, shard, done, doing = "annotations", "annotations", "scored", "Annotating"
    schema = ANNOTATION_SCHEMA

    def __init__(self, config: AnnotateConfig, annotator: str) -> None:
        self.votes, self._combine = config.votes, config.combine_windows
        self.questions: Sequence[Prompt] = [load_prompt(name).for_annotator(annotator) for name in config.prompts]
        self._criteria = prompts_by_criterion(self.questions)

    @cached_property
    def identity(self) -> dict[str, Any]:
        fields = ("name", "digest", "criterion", "language")
        return {
            "prompts": [{field: getattr(prompt, field) for field in fields} for prompt in self.questions],
            **criteria_config(prompt.defined_criterion for prompt in self.questions),
        }

    def questions_for(self, choice: str | None) -> list[Prompt]:
        return [prompts.get(choice or "") or next(iter(prompts.values())) for prompts in self._criteria.values()]

    def read(self, answer: Answer, call: Call) -> dict[str, Any]:
        assert isinstance(call.question, Prompt)
        return read_verdict(answer, call.question)._asdict()

    def join(self, answers: Sequence[dict[str, Any]]) -> dict[str, Any]:
        row = super().join(answers)
        if len(answers) > 1 and not row["error"]:
            for name in ("score", "expected_score"):
                values = [answer[name] for answer in answers]
                row[name] = None if None in values else combine(values, self._combine)
            row["reason"] = "\n\n".join(answer["reason"] for answer in answers if answer["reason"]) or None
        return row


def annotation_plan(source: SourceConfig, config: AnnotateConfig, annotator: str, kept_from: str | None = None) -> Plan:
    """What has to be asked to annotate documents; `kept_from` as in `annotate_documents`."""
    task = _ScoreTask(config, annotator)
    task.kept_from = kept_from
    return Plan(source, config, task, annotator)


def annotate_documents(
    source: SourceConfig,
    config: AnnotateConfig,
    output: str | Path,
    settings: Settings | None = None,
    *,
    ledgers: str | None = None,
    kept_from: str | None = None,
) -> Manifest:
    """Score documents with an LLM. Every answer is in the ledger before it counts.

    The output also holds the prompts and, unless the configuration or `ledgers` names another, the ledger. Without
    `settings`, endpoint and key are read from the environment; this holds for all functions of this package.

    Args:
        ledgers: directory of ledgers that outputs share, one for each set of questions.
        kept_from: what follows this mark in a document is not cut (see `Windows`).

    Raises:
        TooManyFailures, EndpointError, InputError: see `run`.
        ConfigError: a prompt or a setting is wrong.
    """
    settings = settings or Settings()
    plan = annotation_plan(source, config, annotator_name(config, settings), kept_from)
    return run(plan, Asking(settings), output, ledgers)
