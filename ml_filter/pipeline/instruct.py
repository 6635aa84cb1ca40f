"""Configuration of the pipeline that makes instruction data."""

from __future__ import annotations

from pydantic import Field

from ml_filter.documents.config import SourceConfig
from ml_filter.downstream.instruct.config import InstructConfig
from ml_filter.pipeline.config import _PipelineConfig


class InstructPipelineConfig(_PipelineConfig):
    """Parameters of the pipeline that makes instruction data."""

    source: SourceConfig = Field(SourceConfig(), description="documents, such as a filtered corpus")
    instruct: InstructConfig = Field(InstructConfig(), description="how instructions are made of them")
