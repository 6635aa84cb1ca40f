"""What an evaluation of a head consists of."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

from ml_filter.statistics.quality import HeadComparison, Quality

EVALUATION_NAME = "evaluation.json"
REPORT_NAME = "evaluation.html"
Unit = Literal["tokens", "words"]


class Disagreement(BaseModel):
    """A document whose score is far from its label, and the beginning of its text."""

    id: str
    label: float
    score: float
    excerpt: str


class HeadEvaluation(Quality):
    """The content of evaluation.json. `worst` holds the largest disagreements, the largest first.

    The shares of tokens in `table` assume that tokens are proportional to UTF-8 bytes. The strata of lengths are in
    `length_unit`: tokens of the head's own tokenizer, or words if it has none; whole texts are counted, even if the
    head reads only their beginning.
    """

    head: str
    head_digest: str
    criterion: str
    labels: str
    label_column: str
    unlabelled: int
    compared_with: str | None
    comparison: HeadComparison | None
    worst: list[Disagreement]
    length_unit: Unit
