"""Configuration of scoring a corpus."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    Field,
)

from ml_filter.config import Seed, StageConfig
from ml_filter.heads.config import EngineConfig

RAY_LOCAL = "local"
"""The value of `ray` that starts a Ray cluster on this machine for one run."""


class ScoreConfig(EngineConfig):
    """How to score a corpus."""

    damaged_shards: Literal["fail", "keep"] = Field(
        "fail",
        description="fail: do not score any document of a truncated or partly unreadable shard; "
        "keep: score the documents that can be read",
    )
    max_failed_shards: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0,
        description="share of shards that may fail; if more do, the run still scores the others and then exits with 1",
    )
    max_failed_documents: Annotated[float, Field(ge=0, le=1)] = Field(
        0.01,
        description="share of documents that may get no score; if more do, the run writes them all and exits with 1",
    )
    workers: Annotated[int, Field(ge=1)] = Field(
        1, description="number of processes (with `ray`: actors) that score shards in parallel, each with its own head"
    )
    ray: str | None = Field(
        None,
        description="run the workers on the Ray cluster at this address; `auto` finds a running cluster, "
        "`local` starts one on this machine",
    )
    worker_cpus: Annotated[int, Field(ge=1)] | None = Field(
        None, description="threads per worker; default: an equal share of this machine's cores, on a Ray cluster 1"
    )
    worker_gpus: Annotated[float, Field(ge=0)] = Field(
        0.0, description="GPUs that each worker requests from Ray; with 0 the workers run on the CPU"
    )
    worker_attempts: Annotated[int, Field(ge=1)] = Field(
        3,
        description="number of workers that may die on a shard before it fails, or while starting before the run ends",
    )


class CascadeConfig(StageConfig):
    """How to build a cascade: a fast first-stage model decides the clear cases, the head decides the others."""

    first_stage: Literal["hashing", "static"] = Field("hashing", description="kind of the first-stage model")
    threshold: float | None = Field(
        None, description="documents with at least this score are kept; default: the threshold of the head"
    )
    max_changed: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.01, description="largest share of all keep-or-drop decisions that may differ from those of the head alone"
    )
    confidence: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.95, description="probability with which `max_changed` holds"
    )
    sample: Annotated[int, Field(ge=100)] = Field(
        20_000,
        description="number of documents of the corpus that the head scores: half train the first-stage model, "
        "half test it",
    )
    audit_share: Annotated[float, Field(ge=0, le=1)] = Field(
        0.01,
        description="share of the first-stage model's decisions that the head checks, to measure how often they differ",
    )
    min_script_share: Annotated[float, Field(ge=0, le=1)] = Field(
        0.01,
        description="scripts and languages with a smaller share of the sample always go to the head; so do sources "
        "that are not in the sample",
    )
    length_quantile: Annotated[float, Field(gt=0, le=1)] = Field(
        0.999, description="documents longer than this quantile of the sample go to the head"
    )
    seed: Seed = 0
