"""The content of judgement.json."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from ml_filter.documents.manifest import Manifest, Parent
from ml_filter.documents.result import read_result
from ml_filter.downstream.judging.figures import Comparison
from ml_filter.statistics.intervals import Figure

JUDGEMENT_NAME, REPORT_NAME = "judgement.json", "report.html"


class Example(BaseModel):
    """A task with both answers and what the judge says."""

    task: str
    base: str
    tuned: str
    verdict: str
    reason: str | None


class Judgement(BaseModel):
    """A tuned model against its base.

    Attributes:
        verdict: `better`, `worse`, `no difference shown` or `no verdict`; `reason` says why.
        figures: `base_*`, `tuned_*` and `change_*` of rating, rouge1, rouge2, rougeL and characters of the answers, on
            the same tasks, and of lm-eval's figures, such as `change_hellaswag/acc`; and the held-out figures of the
            tuning.
        failed: tasks without an answer, by model.
        judge_tokens, answer_tokens: of the judge, and of the answers of both models.
        usd, answer_usd: what they cost; None without prices.
    """

    verdict: str
    reason: str
    warnings: list[str] = []
    tuned: Parent
    base: Parent
    judge: str
    tasks: int
    failed: dict[str, int]
    cut_off: dict[str, int]
    comparison: Comparison
    figures: dict[str, Figure]
    judge_tokens: int
    answer_tokens: int
    usd: float | None
    answer_usd: float | None
    examples: list[Example]
    config: dict[str, Any]
    stages: dict[str, str]


def read_judgement(directory: str | Manifest) -> Judgement:
    """Read the result of an evaluation.

    Raises:
        InputError: the directory has none, or that of another version.
    """
    return read_result(directory, JUDGEMENT_NAME, Judgement, "ml-filter judge")
