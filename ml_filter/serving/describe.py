"""What /info says about the head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel

from ml_filter import __version__
from ml_filter.documents.lineage import annotation_summary
from ml_filter.documents.manifest import Parent
from ml_filter.heads.info import CalibratedCriterion, HeadInfo
from ml_filter.heads.kinds import HEADS
from ml_filter.serving.config import ServeConfig
from ml_filter.statistics.calibration import ThresholdRow


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
    device, dtype = HEADS[info.engine].device_and_dtype(config.score)
    runs: list[dict[str, Any]] = info.provenance.get("labels", [])
    prompts = {
        prompt["digest"]: {name: str(prompt[name]) for name in ("name", "criterion", "digest")}
        for run in runs
        for prompt in run.get("prompts", [])
    }
    annotators = annotation_summary(runs).get("annotator", "") if runs else ""
    return HeadDescription(
        head=head.path if "://" in head.path else Path(head.path).resolve().name,
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
