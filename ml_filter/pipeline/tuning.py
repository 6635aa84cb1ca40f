"""Configuration of the tuning pipeline."""

from __future__ import annotations

from pydantic import Field

from ml_filter.documents.config import SourceConfig
from ml_filter.downstream.tuning.config import TuneConfig
from ml_filter.pipeline.config import _PipelineConfig


class TuningPipelineConfig(_PipelineConfig):
    """Parameters of the tuning pipeline."""

    data: SourceConfig = Field(description="instruction data: messages, triples or preference pairs")
    tune: TuneConfig = Field(TuneConfig(), description="how the model is tuned")
