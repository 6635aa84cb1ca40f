"""Record the evaluation of a tuned model in the experiment tracker."""

from typing import Annotated

from zenml import step

from ml_filter.documents.manifest import Manifest
from ml_filter.downstream.judging.report import judgement_record
from ml_filter.downstream.judging.result import read_judgement
from ml_filter.tracking import TrackingConfig
from steps.names import Artifact
from steps.tracking import recorded


@step(enable_cache=False)
def track_judgement(config: TrackingConfig, judgement: Manifest) -> Annotated[str, Artifact.TRACKING]:
    """Record win rates and figures; returns the URL, the path of the offline archive, or "off"."""
    return recorded(config, judgement_record(read_judgement(judgement)))
