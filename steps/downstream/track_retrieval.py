"""Record the evaluation of retrieval in the experiment tracker."""

from typing import Annotated

from zenml import get_step_context, log_metadata, step
from zenml.metadata.metadata_types import Uri

from ml_filter.documents.manifest import Manifest
from ml_filter.downstream.retrieval.evaluate import retrieval_record
from ml_filter.tracking import TrackingConfig, track_run
from steps.names import Artifact


@step(enable_cache=False)
def track_retrieval(config: TrackingConfig, evaluation: Manifest) -> Annotated[str, Artifact.TRACKING]:
    """Record figures and the page; returns the URL, the path of the offline archive, or "off"."""
    record = retrieval_record(evaluation)
    where = track_run(config, get_step_context().pipeline_run.name, record)
    log_metadata({"experiment": Uri(where) if "://" in where else where, "metrics": record.metrics})
    return where
