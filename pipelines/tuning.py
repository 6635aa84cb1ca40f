"""Tuning pipeline: from instruction data to a registered language model."""

from zenml import pipeline

from ml_filter.pipeline.tuning import TuningPipelineConfig
from steps.downstream.track_tuning import track_tuning
from steps.downstream.tune_model import tune_model


@pipeline(name="tuning", enable_cache=False)
def tuning_pipeline(config: TuningPipelineConfig) -> None:
    """Tune a language model, register it as a version of the configured model, record its figures and curves."""
    tuned = tune_model(config.tune, config.output, data=config.data)
    track_tuning(config.tracking, tuned)
