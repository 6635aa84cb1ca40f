"""Record a tuning in the experiment tracker."""

from typing import Annotated

from zenml import get_step_context, log_metadata, step
from zenml.metadata.metadata_types import Uri

from ml_filter.downstream.tuning.result import TunedModel
from ml_filter.tracking import TrackingConfig, track_run
from steps.names import Artifact


@step(enable_cache=False)
def track_tuning(config: TrackingConfig, tuned: TunedModel) -> Annotated[str, Artifact.TRACKING]:
    """Record figures, curves and the report; returns the URL, the path of the offline archive, or "off"."""
    record = tuned.record()
    where = track_run(config, get_step_context().pipeline_run.name, record)
    log_metadata({"experiment": Uri(where) if "://" in where else where, "metrics": record.metrics})
    return where
