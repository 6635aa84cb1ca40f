"""Training pipeline: from labelled documents to a registered head."""

from zenml import pipeline
from zenml.enums import ExecutionMode

from ml_filter.settings import SourceConfig, TrackingConfig, TrainConfig
from steps.track_run import track_run
from steps.training.evaluate_head import evaluate_head
from steps.training.train_head import train_head


@pipeline(name="training", enable_cache=False, execution_mode=ExecutionMode.FAIL_FAST)
def training_pipeline(
    labels: SourceConfig,
    train: TrainConfig,
    tracking: TrackingConfig,
    output: str,
    gold: SourceConfig | None = None,
    gold_label_column: str = "human_score",
) -> None:
    """Fit a head, evaluate it, register it as a version of the configured model."""
    head = train_head(train, output, labels=labels)
    if gold is not None:
        evaluate_head(head, gold, gold_label_column, output)
    track_run(tracking, head=head)
