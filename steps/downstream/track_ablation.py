"""Record an ablation in the experiment tracker."""

from typing import Annotated

from zenml import step

from ml_filter.documents.manifest import Manifest
from ml_filter.downstream.ablation.report import ablation_record
from ml_filter.downstream.ablation.result import read_ablation
from ml_filter.tracking import TrackingConfig
from steps.names import Artifact
from steps.tracking import recorded


@step(enable_cache=False)
def track_ablation(config: TrackingConfig, ablation: Manifest) -> Annotated[str, Artifact.TRACKING]:
    """Record bits per byte, gains and curves; returns the URL, the path of the offline archive, or "off"."""
    return recorded(config, ablation_record(read_ablation(ablation.root), ablation.digest))
