"""Ablation pipeline: from a filtered corpus to the answer whether its filter helps."""

from zenml import pipeline

from ml_filter.pipeline.ablation import AblationPipelineConfig
from steps.downstream.ablate_filter import ablate_filter
from steps.downstream.track_ablation import track_ablation


@pipeline(name="ablation", enable_cache=False)
def ablation_pipeline(config: AblationPipelineConfig) -> None:
    """Train models on what a filter keeps, on what it drops and on random documents, and compare them."""
    ablation, _ = ablate_filter(config.ablate, config.output, directory=config.filtered)
    track_ablation(config.tracking, ablation)
