"""Promote a head if it is better than the current one."""

from typing import Annotated

from loguru import logger
from zenml import get_step_context, log_metadata, step
from zenml.types import HTMLString

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.manifest import Manifest
from ml_filter.errors import ConfigError
from ml_filter.evaluation.config import PromoteConfig
from ml_filter.evaluation.promotion import Decision, evaluate_candidate
from ml_filter.evaluation.result import REPORT_NAME
from ml_filter.heads.trained import TrainedHead
from ml_filter.location import Location
from steps.names import Artifact
from steps.registry import COMPARED_WITH, DECISION, adopt_skipped_steps, head_of, in_stage, predictions_of, set_stage


@step(enable_cache=False)
def promote_head(
    head: TrainedHead,
    gold: SourceConfig,
    label_column: str,
    config: PromoteConfig,
    output: str,
    evaluated: Manifest | None = None,
) -> tuple[Annotated[Decision, Artifact.DECISION], Annotated[HTMLString, Artifact.COMPARISON]]:
    """Compare a head with the version in production, else in staging; promote it if it is better and passes the gate.

    Returns the decision, and the page of the evaluation behind it.
    """
    version = get_step_context().model_version
    if version is None:
        raise ConfigError(
            "promote requires a model; set model.name in the YAML to the model whose versions are compared"
        )
    current = in_stage(version.model.name, "production", "staging")
    earlier = [evaluated, predictions_of(current) if current else None]
    decision = evaluate_candidate(
        head,
        head_of(current) if current else None,
        gold,
        label_column,
        config,
        f"{output}/evaluation-{{digest}}",
        names=(f"version {version.number}", f"version {current.number} ({current.stage})" if current else ""),
        earlier=[predictions for predictions in earlier if predictions is not None],
    )
    recorded = {**decision.model_dump(mode="json"), COMPARED_WITH: current.number if current else None}
    log_metadata({DECISION: recorded})
    log_metadata(metadata={DECISION: recorded}, infer_model=True)
    reasons = "; ".join(decision.reasons)
    if decision.promoted:
        adopt_skipped_steps()  # a version in a stage has a head at once
        set_stage(version, config.to, reasons)
    logger.info(f"Version {version.number} is {f'in {config.to}' if decision.promoted else 'not promoted'}: {reasons}")
    page = Location(decision.evaluations[decision.compared_on or "gold"]) / REPORT_NAME
    return decision, HTMLString(page.read_bytes().decode())
