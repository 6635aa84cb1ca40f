"""Evaluate a head on documents with gold labels."""

from typing import Annotated

from zenml import log_metadata, step

from ml_filter.documents.manifest import Manifest
from ml_filter.heads.evaluate import HeadEvaluation
from ml_filter.heads.evaluate import evaluate_head as evaluate
from ml_filter.heads.train import TrainedHead
from ml_filter.settings import SourceConfig
from steps.names import Artifact


@step(enable_cache=False)
def evaluate_head(
    head: TrainedHead, gold: SourceConfig, label_column: str, output: str
) -> tuple[Annotated[HeadEvaluation, Artifact.GOLD_EVALUATION], Annotated[Manifest, Artifact.GOLD_PREDICTIONS]]:
    """Score the gold documents and compare; the figures, and the directory with the page and each document's score."""
    evaluation, manifest = evaluate(head.directory, gold, label_column, f"{output}/evaluation-{{digest}}")
    log_metadata({"path": manifest.root, "figures": evaluation.figures()})
    log_metadata(metadata={"gold_figures": evaluation.figures()}, infer_model=True)
    return evaluation, manifest
