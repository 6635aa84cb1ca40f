"""Configuration of the HTTP server."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import (
    Field,
    model_validator,
)

from ml_filter.config import StageConfig
from ml_filter.heads.config import EngineConfig


class ServeConfig(StageConfig):
    """How documents are scored over HTTP."""

    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0: all of this machine's")
    port: Annotated[int, Field(ge=0, le=65535)] = Field(8000, description="0: a free one")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps")
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    batch_tokens: Annotated[int, Field(ge=64)] | None = Field(
        None, description="padded tokens at once of the encoder; unset: 1024 on a CPU, 65536 on a GPU"
    )
    threads: Annotated[int, Field(ge=1)] | None = Field(None, description="of the encoder; unset: as torch chooses")
    max_batch: Annotated[int, Field(ge=1)] = Field(64, description="documents scored at once")
    max_batch_characters: Annotated[int, Field(ge=1)] = Field(
        2**20, description="of the documents scored at once; a longer one is scored alone"
    )
    max_wait_ms: Annotated[float, Field(ge=0)] = Field(
        5.0, description="how long an idle head waits after a document for more to score with it"
    )
    max_queue: Annotated[int, Field(ge=1)] = Field(1000, description="documents waiting; more are refused")
    max_documents: Annotated[int, Field(ge=1)] = Field(256, description="in a request")
    max_body_bytes: Annotated[int, Field(ge=1)] = Field(8 * 2**20, description="of a request")
    max_held_bytes: Annotated[int, Field(ge=1)] = Field(
        256 * 2**20, description="of all requests that are not answered yet"
    )
    timeout_s: Annotated[float, Field(gt=0)] = Field(30.0, description="until a request is answered, or given up")

    @model_validator(mode="after")
    def _a_request_fits(self) -> Self:
        if self.max_body_bytes > self.max_held_bytes:
            raise ValueError(f"max_held_bytes ({self.max_held_bytes}) is below max_body_bytes ({self.max_body_bytes})")
        return self

    @property
    def score(self) -> EngineConfig:
        """How the head is loaded."""
        made = EngineConfig(device=self.device, dtype=self.dtype)
        return made if self.batch_tokens is None else made.model_copy(update={"batch_tokens": self.batch_tokens})

    @property
    def most_documents(self) -> int:
        """How many documents a request may hold: for more than the queue holds there would never be room."""
        return min(self.max_documents, self.max_queue)
