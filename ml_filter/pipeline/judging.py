"""Configuration of the pipeline that evaluates a tuned model."""

from __future__ import annotations

from pydantic import Field

from ml_filter.documents.config import SourceConfig
from ml_filter.downstream.judging.config import JudgeConfig
from ml_filter.pipeline.config import _PipelineConfig


class JudgingPipelineConfig(_PipelineConfig):
    """Parameters of the judging pipeline."""

    tuned: str = Field(description="directory of a tuned model")
    data: SourceConfig | None = Field(
        None, description="conversations with tasks that the model was not trained on (default: the data of the tuning)"
    )
    judge: JudgeConfig = Field(JudgeConfig(), description="who answers, who judges, and when a judge is trusted")
