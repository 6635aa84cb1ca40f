"""Configuration of sampling, deduplication and decontamination."""

from __future__ import annotations

from typing import Annotated

from pydantic import (
    Field,
)

from ml_filter.config import Seed, StageConfig
from ml_filter.documents.config import SourceConfig


class SampleConfig(StageConfig):
    """A seeded sample of `size` documents, spread evenly over the strata that `by` names."""

    size: Annotated[int, Field(gt=0)]
    seed: Seed = 0
    by: list[str] = []


class DeduplicateConfig(StageConfig):
    """When a document counts as a repetition of an earlier one."""

    threshold: Annotated[float, Field(gt=0, le=1)] = Field(
        0.8, description="estimated Jaccard similarity of word 5-grams from which on it does; 0.8 as in SlimPajama"
    )
    permutations: Annotated[int, Field(ge=16)] = Field(128, description="length of a signature")
    seed: Seed = 0


class DecontaminateConfig(StageConfig):
    """When a document counts as a copy of a text that something is evaluated on."""

    against: Annotated[list[SourceConfig], Field(min_length=1)]
    ngram_words: Annotated[int, Field(ge=1)] = Field(13, description="13 as in GPT-3 (Brown et al. 2020, appendix C)")
    min_share: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0, description="share of the text's n-grams that are found in the document; 0: one n-gram is enough"
    )
