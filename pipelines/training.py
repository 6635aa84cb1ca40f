"""Training pipeline: from labelled documents to a registered head."""

from zenml import pipeline

from ml_filter.documents.manifest import Manifest
from ml_filter.evaluation.promotion import Decision
from ml_filter.heads.trained import TrainedHead
from ml_filter.pipeline.config import ContinuousTrainingPipelineConfig, TrainingPipelineConfig
from steps.track_run import track_run
from steps.training.evaluate_head import evaluate_head
from steps.training.promote_head import promote_head
from steps.training.require_promotion import require_promotion
from steps.training.train_head import train_head


def evaluation_steps(
    head: TrainedHead, config: TrainingPipelineConfig | ContinuousTrainingPipelineConfig
) -> tuple[list[Manifest], Decision | None]:
    """Evaluate a head on gold, if there is some, and promote it if that is configured and it is better."""
    gold, promote, output = config.gold, config.promote, config.output
    evaluations, decision = {}, None
    if gold is not None:
        for criterion, column in config.gold_columns.items():
            _, evaluations[criterion] = evaluate_head(head, gold, column, output, criterion)
        if promote is not None:
            column = config.gold_columns[promote.criterion]
            decision, _ = promote_head(head, gold, column, promote, output, evaluations[promote.criterion])
    return list(evaluations.values()), decision


@pipeline(name="training", enable_cache=False)
def training_pipeline(config: TrainingPipelineConfig) -> None:
    """Train a head, evaluate it, register it as a version of the configured model, promote it if it is better."""
    head = train_head(config.train, config.output, labels=config.labels)
    evaluations, decision = evaluation_steps(head, config)
    tracked = track_run(config.tracking, head=head, evaluations=evaluations, decision=decision)
    if config.promote is not None and config.promote.required:
        require_promotion(decision, after=tracked)
