"""Training pipeline: from labelled documents to a registered head."""

from zenml import pipeline
from zenml.enums import ExecutionMode

from ml_filter.settings import PromoteConfig, SourceConfig, TrackingConfig, TrainConfig
from steps.track_run import track_run
from steps.training.evaluate_head import evaluate_head
from steps.training.promote_head import promote_head
from steps.training.train_head import train_head


@pipeline(name="training", enable_cache=False, execution_mode=ExecutionMode.FAIL_FAST)
def training_pipeline(
    labels: SourceConfig,
    train: TrainConfig,
    tracking: TrackingConfig,
    output: str,
    gold: SourceConfig | None = None,
    gold_label_column: str = "human_score",
    promote: PromoteConfig | None = None,
) -> None:
    """Fit a head, evaluate it, register it as a version of the configured model, promote it if it is better."""
    head = train_head(train, output, labels=labels)
    evaluated = None
    if gold is not None:
        _, evaluated = evaluate_head(head, gold, gold_label_column, output)
        if promote is not None:
            promote_head(head, gold, gold_label_column, promote, output, evaluated)
    track_run(tracking, head=head, evaluation=evaluated)
