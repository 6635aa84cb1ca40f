"""Configuration of comparing and promoting heads."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    Field,
)

from ml_filter.agreement.config import AgreementConfig
from ml_filter.config import StageConfig
from ml_filter.documents.config import SourceConfig
from ml_filter.statistics.metrics import ComparisonMetric

Stage = Literal["staging", "production"]


class CompareConfig(AgreementConfig):
    """How two annotations of the same documents are compared."""

    examples: Annotated[int, Field(ge=1)] = Field(20, description="documents shown on which the two differ most")


class PromoteConfig(StageConfig):
    """When a head takes the place of the current one."""

    to: Stage = "staging"
    metric: ComparisonMetric = "spearman"
    test: SourceConfig | None = Field(
        None, description="documents with LLM labels that no head was trained on, to compare on; unset: the gold"
    )
    test_label_column: str = "score"
    margin: Annotated[float, Field(ge=0)] = Field(
        0.0, description="what the lower bound of the difference to the current head has to reach"
    )
    min_agreement: float = Field(0.6, description="what the lower bound with humans has to reach")
    min_documents: Annotated[int, Field(ge=10)] = Field(30, description="compared documents, of test and of gold")
    max_failed_share: Annotated[float, Field(ge=0, le=1)] = Field(0.01, description="of them, without a score")
    criterion: str | None = Field(None, description="of the heads; unset: the only one")
    required: bool = Field(False, description="a head that is not promoted ends the run with exit code 1")
