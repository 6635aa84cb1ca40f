"""Training pipeline: from labelled documents to a registered head."""

from zenml import pipeline
from zenml.enums import ExecutionMode

from ml_filter.documents.config import SourceConfig
from ml_filter.evaluation.config import PromoteConfig
from ml_filter.heads.config import TrainConfig
from ml_filter.pipeline.config import columns_of
from ml_filter.tracking import TrackingConfig
from steps.track_run import track_run
from steps.training.evaluate_head import evaluate_head
from steps.training.promote_head import promote_head
from steps.training.require_promotion import require_promotion
from steps.training.train_head import train_head


@pipeline(name="training", enable_cache=False, execution_mode=ExecutionMode.FAIL_FAST)
def training_pipeline(
    labels: SourceConfig,
    train: TrainConfig,
    tracking: TrackingConfig,
    output: str,
    gold: SourceConfig | None = None,
    gold_label_column: str | dict[str, str] = "human_score",
    promote: PromoteConfig | None = None,
) -> None:
    """Fit a head, evaluate it, register it as a version of the configured model, promote it if it is better."""
    head = train_head(train, output, labels=labels)
    evaluations, decision = [], None
    if gold is not None:
        columns = columns_of(gold_label_column, promote)
        of = {name: evaluate_head(head, gold, column, output, name)[1] for name, column in columns.items()}
        evaluations = list(of.values())
        if promote is not None:
            decision, _ = promote_head(head, gold, columns[promote.criterion], promote, output, of[promote.criterion])
    tracked = track_run(tracking, head=head, evaluations=evaluations, decision=decision)
    if promote is not None and promote.required:
        require_promotion(decision, after=tracked)
