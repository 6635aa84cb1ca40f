"""Configuration of the fetch pipeline."""

from __future__ import annotations

from pydantic import Field

from ml_filter.downstream.fetching.config import FetchConfig
from ml_filter.mongodb import MongoLocation
from ml_filter.pipeline.config import _PipelineConfig


class FetchPipelineConfig(_PipelineConfig):
    """Parameters of the fetch pipeline."""

    fetch: FetchConfig = Field(description="what is fetched")
    warehouse: MongoLocation | None = Field(
        None, description="MongoDB collection for the documents, as mongodb://HOST/DATABASE.COLLECTION (default: none)"
    )
