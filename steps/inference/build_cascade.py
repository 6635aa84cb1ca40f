"""Build a cascade: a first-stage model in front of the head."""

from typing import Annotated

from zenml import log_metadata, step

from ml_filter.documents.config import SourceConfig
from ml_filter.heads.kinds import cascade_of
from ml_filter.heads.trained import TrainedHead
from ml_filter.scoring.cascade import build_cascade as build
from ml_filter.scoring.config import CascadeConfig, ScoreConfig
from steps.names import Artifact


@step(enable_cache=False)
def build_cascade(
    head: TrainedHead, source: SourceConfig, config: CascadeConfig, score: ScoreConfig, output: str
) -> Annotated[TrainedHead, Artifact.CASCADE]:
    """Train the first-stage model on the head's scores of a sample, and bound how many decisions it changes."""
    result = build(head, source, config, score, f"{output}/cascade-{{digest}}")
    cascade = cascade_of(result)
    assert cascade is not None
    log_metadata(cascade.model_dump(mode="json", exclude={"scripts"}))
    return result
