"""What a comparison of two annotators consists of."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

from ml_filter.agreement.agreement import Agreement
from ml_filter.statistics.intervals import Figure

COMPARISON_NAME = "comparison.json"
REPORT_NAME = "comparison.html"


class Side(BaseModel):
    """One of the two annotators: its name, how many of its documents were scored, and what they cost."""

    name: str
    annotator: str
    prompts: list[str]
    directory: str
    documents: int
    scored: int
    failed: int
    share_failed: float
    failed_by_code: dict[str, int]
    prompt_tokens: int
    completion_tokens: int
    usd: float | None


class Difference(BaseModel):
    """A figure of a and of b against gold, over the documents that all three scored, and b's minus a's.

    `better` is None if the interval of the difference includes 0, so that it may be due to chance.
    """

    figure: str
    a: Figure
    b: Figure
    difference: Figure
    better: Literal["a", "b"] | None


class Example(BaseModel):
    """A document on which the two differ; `gold` is None without gold."""

    document_id: str
    excerpt: str
    gold: float | None
    a: float
    b: float
    reason_a: str | None
    reason_b: str | None


class Comparison(BaseModel):
    """The content of comparison.json. `differences` is empty without gold."""

    a: Side
    b: Side
    gold: str | None
    differences: list[Difference]
    examples: list[Example]
    agreement: Agreement
