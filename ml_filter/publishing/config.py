"""Configuration of publishing labelled data sets, and of exporting directories to a warehouse."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, field_validator, model_validator

from ml_filter.config import HubName, Seed, StageConfig
from ml_filter.mongodb import MongoLocation

Share = Annotated[float, Field(ge=0, lt=1)]


class PublishConfig(StageConfig):
    """How scored documents become a labelled data set."""

    validation_share: Share = Field(0.1, description="share of the documents in the validation split")
    test_share: Share = Field(0.1, description="share of the documents in the test split")
    seed: Seed = Field(0, description="seed of the splits")
    criterion: str | list[str] | None = Field(None, description="criteria to publish; default: all")
    near_duplicates: Annotated[float, Field(gt=0, le=1)] = Field(
        0.8, description="keep documents with at least this estimated Jaccard similarity in the same split"
    )
    license: str = Field("unknown", description="license identifier for the data card, such as odc-by")
    title: str | None = Field(None, description="title of the data card; default: made from the criteria")
    agreement: str | list[str] | None = Field(
        None, description="agreement.json or its directory, for the data card; one per criterion"
    )
    push: HubName | None = Field(None, description="Hub data set to upload to, as OWNER/NAME")
    private: bool = Field(False, description="create the Hub data set as private; fail if it exists and is public")

    @field_validator("criterion", "agreement")
    @classmethod
    def _single_name(cls, names: str | list[str] | None) -> str | list[str] | None:
        """A name and a list of that name are the same configuration, with the same digest."""
        return names[0] if isinstance(names, list) and len(names) == 1 else names or None

    @model_validator(mode="after")
    def _leaves_training_documents(self) -> Self:
        if self.validation_share + self.test_share >= 1:
            raise ValueError("validation_share and test_share leave no training documents; their sum must be below 1")
        return self


_LOCATION = "mongodb://HOST/DATABASE.COLLECTION"


class LabelWarehouseConfig(StageConfig):
    """Collections that an annotation pipeline exports to."""

    annotations: MongoLocation | None = Field(
        None, description=f"collection for the annotations of all annotators, as {_LOCATION}"
    )
    scores: MongoLocation | None = Field(None, description="collection for the aggregated scores")


class CorpusWarehouseConfig(StageConfig):
    """Collections that a scoring pipeline exports to."""

    scored: MongoLocation | None = Field(None, description=f"collection for all scored documents, as {_LOCATION}")
    filtered: MongoLocation | None = Field(None, description="collection for the documents that are kept")


class WarehouseConfig(LabelWarehouseConfig, CorpusWarehouseConfig):
    """Collections that an end-to-end pipeline exports to."""
