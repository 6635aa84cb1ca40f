"""Record the whole loop in the experiment tracker."""

from typing import Annotated

from zenml import step

from ml_filter.documents.manifest import Manifest
from ml_filter.downstream.proof.page import proof_record, read_proof
from ml_filter.tracking import TrackingConfig
from steps.names import Artifact
from steps.tracking import recorded


@step(enable_cache=False)
def track_proof(config: TrackingConfig, proof: Manifest) -> Annotated[str, Artifact.TRACKING]:
    """Record verdicts and figures; returns the URL, the path of the offline archive, or "off"."""
    return recorded(config, proof_record(read_proof(proof)))
