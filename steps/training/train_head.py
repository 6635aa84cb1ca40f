"""Fit a head on labelled documents."""

from typing import Annotated, Any

from zenml import ArtifactConfig, log_metadata, step
from zenml.enums import ArtifactType

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.lineage import annotation_summary
from ml_filter.documents.manifest import Manifest
from ml_filter.heads.config import TrainConfig
from ml_filter.heads.train import train_head as train
from ml_filter.heads.trained import TrainedHead
from steps.materializers import HeadMaterializer
from steps.names import Artifact
from steps.registry import HEAD_METADATA


@step(enable_cache=False, output_materializers=HeadMaterializer)
def train_head(
    config: TrainConfig, output: str, scores: Manifest | None = None, labels: SourceConfig | None = None
) -> Annotated[TrainedHead, ArtifactConfig(name=Artifact.HEAD, artifact_type=ArtifactType.MODEL)]:
    """Train on aggregated scores or a labelled source, and evaluate on held-out documents."""
    source = SourceConfig(paths=[scores.root]) if scores is not None else labels
    if source is None:
        raise ValueError("train_head needs scores or labels")
    head = train(source, config, f"{output}/head-{{digest}}")
    figures = head.training.evaluation.figures()
    log_metadata({"path": head.origin, "digest": head.digest, "figures": figures})
    metadata: dict[str, Any] = dict(zip(HEAD_METADATA, (figures, head.digest, _lineage(head)), strict=True))
    log_metadata(metadata=metadata, infer_model=True)
    return head


def _lineage(head: TrainedHead) -> dict[str, Any]:
    labels = {parent.path: parent.digest for parent in head.training.parents}
    return {"labels": labels, "weights_digest": head.digest, **annotation_summary(head.training.lineage)}
