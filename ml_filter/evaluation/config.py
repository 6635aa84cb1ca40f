"""Configuration of comparing annotators and promoting heads."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ml_filter.agreement.config import AgreementConfig
from ml_filter.config import StageConfig
from ml_filter.documents.config import SourceConfig
from ml_filter.statistics.metrics import ComparisonMetric

Stage = Literal["staging", "production"]


class CompareConfig(AgreementConfig):
    """How two annotations of the same documents are compared."""

    examples: Annotated[int, Field(ge=1)] = Field(
        20, description="number of documents to show, those on which the two differ most"
    )


class PromoteConfig(StageConfig):
    """When a head replaces the current one."""

    to: Stage = Field("staging", description="stage that the head is promoted to")
    metric: ComparisonMetric = Field("spearman", description="figure to compare heads by, and to gate on")
    test: SourceConfig | None = Field(
        None, description="documents with LLM labels to compare on, which no head was trained on (default: the gold)"
    )
    test_label_column: str = Field("score", description="column of test with the labels")
    margin: Annotated[float, Field(ge=0)] = Field(
        0.0, description="least lower bound of the difference to the current head"
    )
    min_agreement: float = Field(0.6, description="least lower bound of the metric with human labels")
    min_documents: Annotated[int, Field(ge=10)] = Field(
        30, description="least number of compared documents, of test and of gold"
    )
    max_failed_share: Annotated[float, Field(ge=0, le=1)] = Field(
        0.01, description="greatest share of these documents without a score"
    )
    criterion: str | None = Field(None, description="criterion of the heads (default: the only one)")
    ablation: str | None = Field(
        None,
        description="directory of an ablation of a corpus that the head scored, which must find that its filter helps "
        "(default: not required)",
    )
    required: bool = Field(False, description="exit with code 1 if the head is not promoted")
