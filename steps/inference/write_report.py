"""Write the report of a run for the dashboard, and beside the filtered documents."""

from typing import Annotated, Any

from zenml import get_step_context, log_metadata, step
from zenml.types import HTMLString

from ml_filter.documents.manifest import Manifest
from ml_filter.heads.trained import TrainedHead
from ml_filter.reporting.config import DriftConfig
from ml_filter.reporting.run import write_run_report
from steps.names import DRIFT, Artifact


@step(enable_cache=False)
def write_report(
    head: TrainedHead,
    scored: Manifest,
    filtered: Manifest,
    sample: Manifest | None = None,
    annotations: Manifest | None = None,
    scores: Manifest | None = None,
    usd_per_worker_hour: float | None = None,
    drift: DriftConfig | None = None,
) -> Annotated[HTMLString, Artifact.REPORT]:
    """Report counts of every stage, scores, examples at each score, and provenance."""
    feature = [manifest for manifest in (sample, annotations, scores) if manifest is not None]
    path, page, reasons = write_run_report(head, scored, filtered, feature, usd_per_worker_hour, drift)
    log_metadata({"path": path})
    if drift is not None:
        metadata: dict[str, Any] = {"reasons": reasons, "retrain": drift.retrain or ""}
        log_metadata(metadata={DRIFT: metadata}, run_id_name_or_prefix=get_step_context().pipeline_run.id)
    return HTMLString(page)
