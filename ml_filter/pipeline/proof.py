"""Configuration of the pipeline that runs the full loop."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from ml_filter.documents.config import SourceConfig
from ml_filter.downstream.ablation.config import AblateConfig
from ml_filter.downstream.instruct.config import InstructConfig
from ml_filter.downstream.judging.config import JudgeConfig
from ml_filter.downstream.tuning.config import TuneConfig
from ml_filter.pipeline.config import EndToEndPipelineConfig


class ProofPipelineConfig(EndToEndPipelineConfig):
    """Parameters of the proof pipeline: those of the end-to-end pipeline, and of what follows."""

    ablate: AblateConfig = Field(description="how it is shown whether the filter helps")
    instruct: InstructConfig = Field(InstructConfig(), description="how instructions are made of the kept documents")
    tune: TuneConfig = Field(TuneConfig(), description="how a model is tuned on the instructions")
    judge: JudgeConfig = Field(JudgeConfig(), description="how the tuned model is compared with its base")

    @property
    def evaluated_on(self) -> list[SourceConfig]:
        """Documents that the annotators and the models of the ablation are measured on."""
        return [*super().evaluated_on, self.ablate.gold, *self.ablate.targets.values()]

    @model_validator(mode="after")
    def _keeps_what_is_dropped(self) -> Self:
        if not self.filter.dropped:
            raise ValueError("filter.dropped must be true: the ablation compares with what the filter drops")
        return self
