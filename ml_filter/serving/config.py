"""Configuration of the HTTP server."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ml_filter.config import Cli, StageConfig
from ml_filter.heads.config import EngineConfig


class ServeConfig(StageConfig):
    """How to score documents over HTTP."""

    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 listens on all interfaces")
    port: Annotated[int, Field(ge=0, le=65535)] = Field(8000, description="port to listen on; 0 picks a free one")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1 or mps")
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="number type of the encoder")
    batch_tokens: Annotated[int, Field(ge=64)] | None = Field(
        None, description="padded tokens that the encoder reads at once; default: 1024 on a CPU, 65536 on a GPU"
    )
    threads: Annotated[int, Field(ge=1)] | None = Field(
        None, description="CPU threads of the encoder; default: torch's choice"
    )
    max_batch: Annotated[int, Field(ge=1)] = Field(64, description="maximum documents in a batch")
    max_batch_characters: Annotated[int, Field(ge=1)] = Field(
        2**20, description="maximum characters in a batch; a longer document is scored alone"
    )
    max_wait_ms: Annotated[float, Field(ge=0)] = Field(
        5.0, description="milliseconds to wait for more documents before scoring a batch that is not full"
    )
    max_queue: Annotated[int, Field(ge=1)] = Field(
        1000, description="maximum documents waiting; requests beyond it are rejected with 503"
    )
    max_documents: Annotated[int, Field(ge=1)] = Field(256, description="maximum documents in a request")
    max_body_bytes: Annotated[int, Field(ge=1)] = Field(8 * 2**20, description="maximum bytes of a request body")
    max_held_bytes: Annotated[int, Field(ge=1)] = Field(
        256 * 2**20, description="maximum bytes of all requests in progress"
    )
    timeout_s: Annotated[float, Field(gt=0), Cli("--timeout")] = Field(
        30.0, description="seconds until a request fails with 504"
    )

    @model_validator(mode="after")
    def _one_request_fits(self) -> Self:
        if self.max_body_bytes > self.max_held_bytes:
            raise ValueError(
                f"max_held_bytes ({self.max_held_bytes}) must be at least max_body_bytes ({self.max_body_bytes})"
            )
        return self

    @property
    def score(self) -> EngineConfig:
        """How to load the head."""
        return EngineConfig(device=self.device, dtype=self.dtype, batch_tokens=self.batch_tokens)

    @property
    def request_documents(self) -> int:
        """The maximum number of documents in a request; the queue never has room for more than it holds."""
        return min(self.max_documents, self.max_queue)
