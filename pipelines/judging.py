"""Judging pipeline: from a tuned model to the answer whether it is better than its base."""

from zenml import pipeline

from ml_filter.pipeline.judging import JudgingPipelineConfig
from steps.downstream.judge_tuned import judge_tuned
from steps.downstream.track_judgement import track_judgement


@pipeline(name="judging", enable_cache=False)
def judging_pipeline(config: JudgingPipelineConfig) -> None:
    """Let a tuned model and its base answer held-out tasks, and compare the answers."""
    judgement, _ = judge_tuned(config.judge, config.output, directory=config.tuned, data=config.data)
    track_judgement(config.tracking, judgement)
