"""Record a run in the experiment tracker."""

from typing import Annotated

from zenml import get_step_context, log_metadata, step
from zenml.metadata.metadata_types import Uri

from ml_filter.documents.manifest import Manifest
from ml_filter.evaluation.promotion import Decision
from ml_filter.heads.trained import TrainedHead
from ml_filter.reporting.run import record_run
from ml_filter.tracking import TrackingConfig
from ml_filter.tracking import track_run as track
from steps.names import Artifact
from steps.registry import adopt_skipped_steps


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
    record = record_run(manifests, head, evaluations, decision)
    where = track(config, get_step_context().pipeline_run.name, record)
    log_metadata({"experiment": Uri(where) if "://" in where else where, "metrics": record.metrics})
    return where
