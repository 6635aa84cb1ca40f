"""Configuration of sources and of converting older files."""

from __future__ import annotations

from typing import Annotated

from pydantic import (
    Field,
    model_validator,
)

from ml_filter.config import StageConfig


class SourceConfig(StageConfig):
    """Where documents come from and which of their columns is what."""

    paths: Annotated[list[str], Field(min_length=1)] = ["installed:"]
    text_column: str = "text"
    id_column: str | None = Field(None, description="unset: `id` where there is one, else a hash of the text")
    split: str = Field("train", description="split of a Hub data set")
    subset: str | None = Field(None, description="configuration name of a Hub data set")
    max_text_bytes: Annotated[int, Field(gt=0)] = Field(
        10 * 2**20, description="a longer document is rejected as `text_too_long`"
    )


class ConvertConfig(StageConfig):
    """What an older file does not say of its annotations; what it says itself goes before."""

    annotator: str | None = None
    prompt: str | None = None
    criterion: str | None = Field(None, description="unset: the prompt's name")
    language: str | None = Field(None, description="of the prompt")
    score_columns: Annotated[list[str], Field(min_length=1)] = ["score"]
    score_min: float = 0.0
    score_max: float = 5.0

    @model_validator(mode="after")
    def _range_has_width(self) -> ConvertConfig:
        if self.score_max <= self.score_min:
            raise ValueError(f"score_max ({self.score_max}) must be above score_min ({self.score_min})")
        return self
