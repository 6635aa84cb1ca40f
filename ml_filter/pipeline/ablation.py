"""Configuration of the ablation pipeline."""

from __future__ import annotations

from pydantic import Field

from ml_filter.downstream.ablation.config import AblateConfig
from ml_filter.pipeline.config import _PipelineConfig


class AblationPipelineConfig(_PipelineConfig):
    """Parameters of the ablation pipeline."""

    filtered: str = Field(description="directory of a filtered corpus, made with filter.dropped=true")
    ablate: AblateConfig = Field(description="what the models are trained on and measured on")
