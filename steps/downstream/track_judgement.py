"""Record the evaluation of a tuned model in the experiment tracker."""

from typing import Annotated

from zenml import get_step_context, log_metadata, step
from zenml.metadata.metadata_types import Uri

from ml_filter.documents.manifest import Manifest
from ml_filter.downstream.judging.report import judgement_record
from ml_filter.downstream.judging.result import read_judgement
from ml_filter.tracking import TrackingConfig, track_run
from steps.names import Artifact


@step(enable_cache=False)
def track_judgement(config: TrackingConfig, judgement: Manifest) -> Annotated[str, Artifact.TRACKING]:
    """Record win rates and figures; returns the URL, the path of the offline archive, or "off"."""
    record = judgement_record(read_judgement(judgement))
    where = track_run(config, get_step_context().pipeline_run.name, record)
    log_metadata({"experiment": Uri(where) if "://" in where else where, "metrics": record.metrics})
    return where
