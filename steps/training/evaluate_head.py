"""Evaluate a head on documents with gold labels."""

from typing import Annotated

from loguru import logger
from zenml import get_step_context, log_metadata, step

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.manifest import Manifest
from ml_filter.errors import InputError
from ml_filter.evaluation.evaluate import evaluate_head as evaluate
from ml_filter.evaluation.result import HeadEvaluation
from ml_filter.heads.trained import TrainedHead
from steps.names import Artifact
from steps.registry import COMPARED_WITH, head_of, in_stage, predictions_of


@step(enable_cache=False)
def evaluate_head(
    head: TrainedHead, gold: SourceConfig, label_column: str, output: str, criterion: str | None = None
) -> tuple[Annotated[HeadEvaluation, Artifact.GOLD_EVALUATION], Annotated[Manifest, Artifact.GOLD_PREDICTIONS]]:
    """Score the gold documents, and compare the head with the version in production, else in staging.

    Returns the figures, and the manifest of the directory with the page and each document's score.
    """
    version = get_step_context().model_version
    current = in_stage(version.model.name, "production", "staging") if version else None
    arguments = (head, gold, label_column, f"{output}/evaluation-{{digest}}")
    result = None
    if current is not None:
        earlier = predictions_of(current)
        try:
            result = evaluate(*arguments, head_of(current), criterion, [earlier] if earlier else [])
        except InputError as error:  # criteria differ; an error in the gold is raised below
            logger.warning(f"Not compared with version {current.number}: {error}")
            current = None
    evaluation, manifest = result or evaluate(*arguments, criterion=criterion)
    figures = evaluation.figures()
    compared = {COMPARED_WITH: current.number} if current else {}
    log_metadata({"path": manifest.root, "figures": figures, **compared})
    log_metadata(metadata={f"gold_figures_{criterion}" if criterion else "gold_figures": figures}, infer_model=True)
    return evaluation, manifest
