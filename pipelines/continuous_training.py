"""Continuous training: label what the source has gained, and train again on all labels so far."""

from zenml import pipeline

from ml_filter.documents.manifest import digest_of
from ml_filter.pipeline.config import ContinuousTrainingPipelineConfig
from pipelines.annotation import feature_steps
from pipelines.training import evaluation_steps
from steps.feature.sample_new_documents import sample_new_documents
from steps.track_run import track_run
from steps.training.train_head import train_head


@pipeline(name="continuous_training", enable_cache=False)
def continuous_training_pipeline(config: ContinuousTrainingPipelineConfig) -> None:
    """Sample new documents, annotate them, train on the labels of this and all earlier runs, promote a better head."""
    prompts = [annotator.prompts for annotator in config.annotators]
    scope = digest_of([config.output, config.source.model_dump(mode="json"), prompts])
    sample, so_far = sample_new_documents(config.source, config.sample, config.output, scope)
    features = feature_steps(config, sample, so_far)._asdict()
    head = train_head(config.train, config.output, scores=features["scores"])
    evaluations, decision = evaluation_steps(head, config)
    track_run(config.tracking, head=head, evaluations=evaluations, decision=decision, **features)
