"""Configuration of scoring a corpus."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    Field,
)

from ml_filter.config import Seed, StageConfig
from ml_filter.heads.config import EngineConfig


class ScoreConfig(EngineConfig):
    """How a corpus is scored."""

    damaged_shards: Literal["fail", "keep"] = Field(
        "fail", description="a truncated shard or one with unreadable parts fails whole; keep: score what can be read"
    )
    max_failed_shards: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0, description="share of the shards that may fail; above it the run ends as failed, after all the others"
    )
    max_failed_documents: Annotated[float, Field(ge=0, le=1)] = Field(
        0.01, description="share of the documents that may get no score; above it the run ends as failed, all written"
    )
    workers: Annotated[int, Field(ge=1)] = Field(
        1, description="processes that score shards at the same time, each with the head in memory"
    )
    ray: str | None = Field(None, description="`local`, or the address of the Ray cluster that the workers run on")
    worker_cpus: Annotated[int, Field(ge=1)] | None = Field(
        None, description="threads of a worker; unset: this machine's cores shared out, on a Ray cluster 1"
    )
    worker_gpus: Annotated[float, Field(ge=0)] = Field(
        0.0, description="GPUs that a worker asks of Ray; with 0 it runs on the CPU"
    )
    worker_attempts: Annotated[int, Field(ge=1)] = Field(
        3, description="workers that may die over a shard before it fails, or in a row before they have begun one"
    )


class CascadeConfig(StageConfig):
    """How a cheap student is set before a head, to settle the clear cases."""

    student: Literal["hashing", "static"] = "hashing"
    threshold: float | None = Field(None, description="documents are kept from this score upwards; unset: the head's")
    max_changed: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.01, description="most of all keep-or-drop decisions that may differ from the head's own"
    )
    confidence: Annotated[float, Field(gt=0, lt=1)] = Field(0.95, description="that no more differ")
    sample: Annotated[int, Field(ge=100)] = Field(
        20_000, description="documents of the corpus that the head scores: half teach the student, half test it"
    )
    audit_share: Annotated[float, Field(ge=0, le=1)] = Field(
        0.01, description="of what the student settles, is scored by the head as well, to see how often they differ"
    )
    min_script_share: Annotated[float, Field(ge=0, le=1)] = Field(
        0.01,
        description="documents in scripts or languages that fewer of the sample have go to the head; so do those of "
        "sources that it has none of",
    )
    length_quantile: Annotated[float, Field(gt=0, le=1)] = Field(
        0.999, description="documents longer than this quantile of the sample go to the head"
    )
    seed: Seed = 0
