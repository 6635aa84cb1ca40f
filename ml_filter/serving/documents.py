"""A document in a request, and its scores in the response."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, PlainValidator, StrictInt, StrictStr

from ml_filter.documents.readers import text_id
from ml_filter.heads.kinds import Head

DocumentId = StrictStr | StrictInt


def _any_string(value: Any) -> str:
    # pydantic's own check rejects lone surrogates, which would fail the whole request instead of one document.
    if not isinstance(value, str):
        raise ValueError("must be a string")
    return value


Text = Annotated[str, PlainValidator(_any_string, json_schema_input_type=str)]


class Document(BaseModel):
    """A document to score. Without an id, it gets a hash of its text, as in a corpus."""

    id: DocumentId | None = None
    text: Text


class CriterionScore(BaseModel):
    """The score for one criterion; null if the document failed."""

    score: float | None
    int_score: int | None


class ScoredDocument(BaseModel):
    """The scores of a document by criterion, or the reason why it failed.

    Reasons: `empty_text` and `invalid_utf8`, as in the rejects of a corpus; `no_score` if the head returned no finite
    score; `engine_error: TYPE` if it raised an exception.
    """

    id: DocumentId
    status: Literal["scored", "failed"]
    reason: str | None
    scores: dict[str, CriterionScore]


def reject_reason(text: str) -> str | None:
    """Why a corpus reader would reject the text; None if it would not."""
    if not text.strip():
        return "empty_text"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "invalid_utf8"
    return None


def score_documents(engine: Head, documents: Sequence[Document]) -> list[ScoredDocument]:
    """Score documents whose text a corpus reader would accept."""
    scores = engine.score([document.text for document in documents]).astype(np.float64)
    failed = np.logical_not(np.isfinite(scores).all(axis=1))
    int_scores = np.column_stack(
        [
            criterion.integer_scores(np.where(failed, criterion.low, column))
            for criterion, column in zip(engine.info.criteria, scores.T, strict=True)
        ]
    )
    results = []
    rows = zip(documents, failed.tolist(), scores.tolist(), int_scores.tolist(), strict=True)
    for document, has_failed, row, int_row in rows:
        pairs = dict(zip(engine.info.names, zip(row, int_row, strict=True), strict=True))
        results.append(failed_document(document, "no_score", pairs) if has_failed else _result(document, pairs))
    return results


def failed_document(document: Document, reason: str, criteria: Iterable[str]) -> ScoredDocument:
    """The result of a document that cannot be scored."""
    return _result(document, dict.fromkeys(criteria, (None, None)), reason)


def _result(
    document: Document, scores: Mapping[str, tuple[float | None, int | None]], reason: str | None = None
) -> ScoredDocument:
    return ScoredDocument(
        id=text_id(document.text) if document.id is None else document.id,
        status="failed" if reason else "scored",
        reason=reason,
        scores={name: CriterionScore(score=score, int_score=whole) for name, (score, whole) in scores.items()},
    )
