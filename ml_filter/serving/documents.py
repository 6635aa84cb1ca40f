"""What the service receives and returns: documents, their scores, and the description of the head."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, PlainValidator, StrictInt, StrictStr

from ml_filter import __version__
from ml_filter.documents.lineage import annotation_summary
from ml_filter.documents.manifest import Parent
from ml_filter.documents.readers import text_id
from ml_filter.heads.info import CalibratedCriterion, HeadInfo
from ml_filter.heads.kinds import Head, head_class
from ml_filter.location import Location
from ml_filter.serving.config import ServeConfig
from ml_filter.statistics.calibration import ThresholdRow

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
    has_score = np.isfinite(scores.sum(axis=1))
    int_scores = np.column_stack(
        [
            criterion.integer_scores(np.where(has_score, column, criterion.low))
            for criterion, column in zip(engine.info.criteria, scores.T, strict=True)
        ]
    )
    names = engine.info.names
    return [
        _result(document, dict(zip(names, zip(row, int_row, strict=True), strict=True)))
        if is_scored
        else failed_document(document, "no_score", names)
        for document, is_scored, row, int_row in zip(
            documents, has_score, scores.tolist(), int_scores.tolist(), strict=True
        )
    ]


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


class CriterionDescription(BaseModel):
    """One criterion: its range, and how to interpret its scores.

    `int_score_from` maps each int_score to the lowest score that gets it (null: no score does); it is null if the head
    is not calibrated and int_score is the rounded score. `thresholds` says what a minimum score keeps, measured on the
    documents that `fitted_on` names.
    """

    name: str
    low: float
    high: float
    threshold: float
    int_score_from: dict[int, float | None] | None = None
    fitted_on: str | None = None
    thresholds: list[ThresholdRow] = []


class HeadDescription(BaseModel):
    """The head, the origin of its labels, and what it runs on. Paths are reduced to their last part."""

    head: str
    digest: str
    version: str = __version__
    engine: str
    device: str
    dtype: str
    criteria: list[CriterionDescription]
    prompts: list[dict[str, str]]
    annotators: list[str]
    limits: dict[str, float]


def describe_head(head: Parent, info: HeadInfo, config: ServeConfig) -> HeadDescription:
    """Describe a head and the limits of the service.

    Raises:
        ConfigError: this machine does not have the device.
    """
    device, dtype = head_class(info.engine).device_and_dtype(config.score)
    runs: list[dict[str, Any]] = info.provenance.get("labels", [])
    prompts = {
        prompt["digest"]: {name: str(prompt[name]) for name in ("name", "criterion", "digest")}
        for run in runs
        for prompt in run.get("prompts", [])
    }
    annotators = annotation_summary(runs).get("annotator", "") if runs else ""
    return HeadDescription(
        head=Location(head.path).absolute.name if Location(head.path).is_local else head.path,
        digest=head.digest,
        engine=info.engine,
        device=device,
        dtype=dtype,
        criteria=[_describe(criterion) for criterion in info.criteria],
        prompts=list(prompts.values()),
        annotators=annotators.split(", ") if annotators else [],
        limits={
            "documents": config.request_documents,
            "body_bytes": config.max_body_bytes,
            "timeout_s": config.timeout_s,
        },
    )


def _describe(criterion: CalibratedCriterion) -> CriterionDescription:
    description = CriterionDescription(
        name=criterion.name, low=criterion.low, high=criterion.high, threshold=criterion.threshold
    )
    if (calibration := criterion.calibration) is not None:
        description.int_score_from = calibration.cuts
        description.fitted_on, description.thresholds = calibration.fitted_on, calibration.table
    return description
