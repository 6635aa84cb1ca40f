"""Record the evaluation of retrieval in the experiment tracker."""

from typing import Annotated

from zenml import step

from ml_filter.documents.manifest import Manifest
from ml_filter.downstream.retrieval.evaluate import retrieval_record
from ml_filter.tracking import TrackingConfig
from steps.names import Artifact
from steps.tracking import recorded


@step(enable_cache=False)
def track_retrieval(config: TrackingConfig, evaluation: Manifest) -> Annotated[str, Artifact.TRACKING]:
    """Record figures and the page; returns the URL, the path of the offline archive, or "off"."""
    return recorded(config, retrieval_record(evaluation))
