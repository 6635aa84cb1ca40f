"""What becomes of single documents: scores by criterion, or the reason why there are none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, PlainValidator, StrictInt, StrictStr

from ml_filter.documents.readers import text_id
from ml_filter.heads.engine import Engine

DocumentId = StrictStr | StrictInt


def _text(value: Any) -> str:
    """Any text, one with lone surrogates too: that is no fault of the documents beside it."""
    if not isinstance(value, str):
        raise ValueError("is no text")
    return value


Text = Annotated[str, PlainValidator(_text, json_schema_input_type=str)]


class Document(BaseModel):
    """What is scored. The id of a document without one is a hash of its text, as in a corpus."""

    id: DocumentId | None = None
    text: Text


class CriterionScore(BaseModel):
    """The score by one criterion; null where the document has none."""

    score: float | None
    int_score: int | None


class ScoredDocument(BaseModel):
    """What became of a document: scores by criterion, or the reason why there are none."""

    id: DocumentId
    status: Literal["scored", "failed"]
    reason: str | None
    scores: dict[str, CriterionScore]


@dataclass(frozen=True, slots=True)
class Outcome:
    """Scores [criteria] and whole scores [criteria], or the reason why there are none.

    Reasons: `empty_text` and `invalid_utf8`, as a corpus' rejects have them, `no_score` where the head gave none, and
    `engine_error` with the kind of the error.
    """

    scores: tuple[float, ...] = ()
    int_scores: tuple[int, ...] = ()
    reason: str | None = None


def unusable(text: str) -> str | None:
    """The reason for which a reader of a corpus would reject the text, if there is one."""
    if not text.strip():
        return "empty_text"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "invalid_utf8"
    return None


def outcomes_of(engine: Engine, texts: Sequence[str]) -> list[Outcome]:
    """What the engine makes of usable texts, in their order."""
    scores = engine.score(texts).astype(np.float64)
    rows = scores.tolist()
    failed = [not all(map(math.isfinite, of)) for of in rows]
    whole = [
        criterion.integer_scores(np.where(failed, criterion.low, column)).tolist()
        for criterion, column in zip(engine.info.criteria, scores.T, strict=True)
    ]
    return [
        Outcome(reason="no_score") if none else Outcome(tuple(of), int_of)
        for none, of, int_of in zip(failed, rows, zip(*whole, strict=True), strict=True)
    ]


def scored_document(document: Document, outcome: Outcome, criteria: Sequence[str]) -> ScoredDocument:
    """A document's outcome with its id and the names of the criteria."""
    failed = outcome.reason is not None
    pairs = [(None, None)] * len(criteria) if failed else zip(outcome.scores, outcome.int_scores, strict=True)
    return ScoredDocument(
        id=text_id(document.text) if document.id is None else document.id,
        status="failed" if failed else "scored",
        reason=outcome.reason,
        scores={
            name: CriterionScore(score=score, int_score=whole)
            for name, (score, whole) in zip(criteria, pairs, strict=True)
        },
    )
