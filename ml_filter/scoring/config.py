"""Configuration of scoring a corpus."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from ml_filter.config import Seed, StageConfig
from ml_filter.heads.config import EngineConfig

RAY_LOCAL = "local"
"""The value of `ray` that starts a cluster on this machine for the duration of a run."""
Engine = Literal["torch", "openvino"]
Dtype = Literal["float32", "bfloat16"]


class ScoreConfig(EngineConfig):
    """How to score a corpus."""

    damaged_shards: Literal["fail", "keep"] = Field(
        "fail", description="a truncated or partly unreadable shard: fail, or keep (score) its readable documents"
    )
    max_failed_shards: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0, description="share of shards that may fail; if more do, the others are scored and the exit code is 1"
    )
    max_failed_documents: Annotated[float, Field(ge=0, le=1)] = Field(
        0.01, description="share of documents that may get no score; if more do, all are written and the exit code is 1"
    )
    workers: Annotated[int, Field(ge=1)] = Field(
        1,
        description="processes (with `ray`: actors) that score shards in parallel, each with its own copy of the head",
    )
    ray: str | None = Field(
        None,
        description="address of a Ray cluster to run the workers on; `auto`: a running one, `local`: start one here",
    )
    worker_cpus: Annotated[int, Field(ge=1)] | None = Field(
        None, description="threads per worker; default: an equal share of this machine's cores, on a Ray cluster 1"
    )
    worker_gpus: Annotated[float, Field(ge=0)] = Field(
        0.0, description="GPUs that each worker requests from Ray; with 0 the workers run on the CPU"
    )
    worker_attempts: Annotated[int, Field(ge=1)] = Field(
        3, description="workers that may die on a shard before it fails, or in a row without having got a shard"
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
        description="documents of the corpus that the head scores: half train the first-stage model, half test it",
    )
    audit_share: Annotated[float, Field(ge=0, le=1)] = Field(
        0.01, description="share of the first-stage model's decisions that the head checks, to measure how many differ"
    )
    min_script_share: Annotated[float, Field(ge=0, le=1)] = Field(
        0.01,
        description="scripts and languages with a smaller share of the sample, and unknown sources, go to the head",
    )
    length_quantile: Annotated[float, Field(gt=0, le=1)] = Field(
        0.999, description="documents longer than this quantile of the sample go to the head"
    )
    seed: Seed = Field(0, description="seed that draws the sample and the audited documents")


class EngineChoice(BaseModel):
    """What runs the encoder, where, in which number type, and why."""

    engine: Engine
    device: str
    dtype: Dtype
    reason: str

    def apply(self, config: ScoreConfig) -> ScoreConfig:
        """The settings with `auto` replaced by this choice."""
        device = self.device if config.device == "auto" else config.device
        return config.model_copy(update={"engine": self.engine, "dtype": self.dtype, "device": device})
