"""Record a run in the experiment tracker."""

from typing import Annotated

from zenml import step

from ml_filter.documents.manifest import Manifest
from ml_filter.evaluation.promotion import Decision
from ml_filter.heads.trained import TrainedHead
from ml_filter.reporting.run import record_run
from ml_filter.tracking import TrackingConfig
from steps.names import Artifact
from steps.registry import adopt_skipped_steps
from steps.tracking import recorded


@step(enable_cache=False)
def track_run(
    config: TrackingConfig,
    sample: Manifest | None = None,
    annotations: Manifest | None = None,
    scores: Manifest | None = None,
    head: TrainedHead | None = None,
    evaluations: list[Manifest] = [],  # noqa: B006 - ZenML takes lists of artifacts only by this very type
    scored: Manifest | None = None,
    filtered: Manifest | None = None,
    fetched: Manifest | None = None,
    decision: Decision | None = None,
) -> Annotated[str, Artifact.TRACKING]:
    """Record counts, figures, curves and pages; returns the URL, the path of the offline archive, or "off"."""
    adopt_skipped_steps()
    manifests = [m for m in (fetched, sample, annotations, scores, scored, filtered) if m is not None]
    return recorded(config, record_run(manifests, head, evaluations, decision))
