"""What a service says of its head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel

from ml_filter import __version__
from ml_filter.documents.lineage import annotation_summary
from ml_filter.documents.manifest import Parent
from ml_filter.heads.config import EngineConfig, HeadEngine
from ml_filter.heads.device import choose_device, choose_dtype
from ml_filter.heads.info import CalibratedCriterion, HeadInfo
from ml_filter.serving.config import ServeConfig
from ml_filter.statistics.calibration import ThresholdRow


class CriterionDescription(BaseModel):
    """One score: its range, and how it is to be read.

    `int_score_from` has the lowest score of each int_score where the head is calibrated (null: no score has it), else
    is null: int_score is the score rounded. `thresholds` says what keeping the documents from a score upwards gives,
    on what `fitted_on` says.
    """

    name: str
    low: float
    high: float
    threshold: float
    int_score_from: dict[int, float | None] | None = None
    fitted_on: str | None = None
    thresholds: list[ThresholdRow] = []


class HeadDescription(BaseModel):
    """The head, what its labels came from, and what it runs on. Of paths only the last part is told."""

    head: str
    digest: str
    version: str = __version__
    engine: HeadEngine
    device: str
    dtype: str
    criteria: list[CriterionDescription]
    prompts: list[dict[str, str]]
    annotators: list[str]
    limits: dict[str, float]


def describe_head(head: Parent, info: HeadInfo, config: ServeConfig) -> HeadDescription:
    """What `/info` answers.

    Raises:
        ConfigError: there is no such device here.
    """
    device, dtype = _runs_on(info.engine, config.score)
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
            "documents": config.most_documents,
            "body_bytes": config.max_body_bytes,
            "timeout_s": config.timeout_s,
        },
    )


def _describe(criterion: CalibratedCriterion) -> CriterionDescription:
    made = CriterionDescription.model_validate(criterion.model_dump(include={"name", "low", "high", "threshold"}))
    if criterion.calibration is None:
        return made
    known = criterion.calibration
    return made.model_copy(
        update={"int_score_from": known.cuts, "fitted_on": known.fitted_on, "thresholds": known.table}
    )


def _runs_on(engine: str, config: EngineConfig) -> tuple[str, str]:
    if engine in ("hashing", "static"):
        return "cpu", "float32"
    device = choose_device(config.device)
    return str(device), str(choose_dtype(config.dtype, device)).removeprefix("torch.")
