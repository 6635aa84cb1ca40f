"""Record instruction data in the experiment tracker."""

from typing import Annotated

from zenml import step

from ml_filter.documents.manifest import Manifest
from ml_filter.downstream.instruct.report import instruct_record
from ml_filter.tracking import TrackingConfig
from steps.names import Artifact
from steps.tracking import recorded


@step(enable_cache=False)
def track_instructions(config: TrackingConfig, report: Manifest) -> Annotated[str, Artifact.TRACKING]:
    """Record counts, cost and the page; returns the URL, the path of the offline archive, or "off"."""
    return recorded(config, instruct_record(report))
