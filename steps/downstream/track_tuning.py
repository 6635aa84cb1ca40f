"""Record a tuning in the experiment tracker."""

from typing import Annotated

from zenml import step

from ml_filter.downstream.tuning.result import TunedModel
from ml_filter.tracking import TrackingConfig
from steps.names import Artifact
from steps.tracking import recorded


@step(enable_cache=False)
def track_tuning(config: TrackingConfig, tuned: TunedModel) -> Annotated[str, Artifact.TRACKING]:
    """Record figures, curves and the report; returns the URL, the path of the offline archive, or "off"."""
    return recorded(config, tuned.record())
