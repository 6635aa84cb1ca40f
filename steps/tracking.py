"""What the steps that record a run share."""

from __future__ import annotations

from zenml import get_step_context, log_metadata
from zenml.metadata.metadata_types import Uri

from ml_filter.tracking import RunRecord, TrackingConfig, track_run


def recorded(config: TrackingConfig, record: RunRecord) -> str:
    """Record the run in the experiment tracker; returns the URL, the path of the offline archive, or "off"."""
    where = track_run(config, get_step_context().pipeline_run.name, record)
    log_metadata({"experiment": Uri(where) if "://" in where else where, "metrics": record.metrics})
    return where
