"""Configuration of publishing labelled data sets."""

from __future__ import annotations

from typing import Annotated

from pydantic import (
    Field,
    field_validator,
    model_validator,
)

from ml_filter.config import Seed, StageConfig


class PublishConfig(StageConfig):
    """How scored documents become a labelled data set."""

    validation_share: Annotated[float, Field(ge=0, lt=1)] = 0.1
    test_share: Annotated[float, Field(ge=0, lt=1)] = 0.1
    seed: Seed = 0
    criterion: str | list[str] | None = Field(None, description="unset: all there are")
    near_duplicates: Annotated[float, Field(gt=0, le=1)] = Field(
        0.8, description="documents of this estimated Jaccard similarity are kept in one split"
    )
    license: str = Field("unknown", description="identifier for the data card, such as odc-by")
    title: str | None = Field(None, description="of the data card; unset: from the criterion")
    agreement: str | list[str] | None = Field(
        None, description="agreement.json, or its directory, for the data card; several: one of each criterion"
    )
    push: str | None = Field(None, description="OWNER/NAME of a Hub data set to upload to")
    private: bool = Field(False, description="on the Hub; one that is there and public is refused")

    @field_validator("criterion", "agreement")
    @classmethod
    def _one_is_one(cls, names: str | list[str] | None) -> str | list[str] | None:
        """A list of one name and the name are the same configuration."""
        return names[0] if isinstance(names, list) and len(names) == 1 else names or None

    @model_validator(mode="after")
    def _leaves_something_to_train_on(self) -> PublishConfig:
        if self.validation_share + self.test_share >= 1:
            raise ValueError("validation_share and test_share leave nothing to train on")
        return self
