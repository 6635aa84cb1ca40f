"""Configuration of aggregation, agreement and gates."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    model_validator,
)

from ml_filter.config import Seed, StageConfig
from ml_filter.documents.config import SourceConfig
from ml_filter.statistics.metrics import GateMetric

VoteMethod = Literal["mean", "median", "majority", "min", "max", "dawid-skene"]


class AggregateConfig(StageConfig):
    """How the votes on a document become one score."""

    method: VoteMethod = "mean"
    use: Literal["expected", "answer"] = Field(
        "expected",
        description="expected score from log-probabilities where there is one, or the parsed answer; unset: expected, "
        "but for majority the answer, since it counts votes that are the same",
    )

    @model_validator(mode="before")
    @classmethod
    def _a_majority_is_of_answers(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("use") is None:
            return {**values, "use": "answer" if values.get("method") == "majority" else "expected"}
        return values

    @model_validator(mode="after")
    def _expected_scores_have_no_majority(self) -> Self:
        if (self.method, self.use) == ("majority", "expected"):
            raise ValueError(
                "majority counts votes that are the same, and expected scores hardly ever are: leave use out for the "
                "answers, or choose the method median"
            )
        return self


class RankConfig(StageConfig):
    """Which documents to annotate next."""

    size: Annotated[int, Field(gt=0)]
    by: Literal["disagreement", "expected-value"] = "disagreement"
    threshold: float = Field(3.0, description="documents at or above it are kept; for expected-value")
    criterion: str | None = Field(None, description="unset: the only one")


class AgreementConfig(StageConfig):
    """Which ratings are compared, and how."""

    gold: SourceConfig | None = Field(None, description="human ratings; then the reference of every comparison")
    gold_column: str = "human_score"
    rating_columns: list[str] = Field(
        [], description="columns of a rated table, one rater each (a list column: one each entry); unset: score, scores"
    )
    id_column: str | None = Field(None, description="of a rated table; unset: id, document_id, a hash of the text")
    criterion: str | None = Field(None, description="needed where annotations or scores hold several")
    by: list[str] = Field([], description="columns of gold or of rated tables; each of their values is a stratum")
    use: Literal["expected", "answer"] = Field(
        "expected", description="expected score from log-probabilities where there is one, or the parsed answer"
    )
    votes_as_raters: bool = Field(False, description="each vote of an annotator is a rater; else their mean is one")
    threshold: float = Field(3.0, description="a rounded score at or above counts as good")
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    resamples: Annotated[int, Field(ge=100)] = 1000
    seed: Seed = 0


class GateConfig(AgreementConfig):
    """What agreement with human gold lets a run go on."""

    gold: SourceConfig
    metric: GateMetric = "spearman"
    min_agreement: float = Field(0.6, description="what the lower bound of the interval has to reach")
    min_documents: Annotated[int, Field(ge=3)] = Field(30, description="compared documents, overall and per stratum")
    small_strata: Literal["stop", "report"] = Field(
        "stop", description="a stratum with fewer documents stops the run, or is only reported as not judged"
    )
    max_failed_share: Annotated[float, Field(ge=0, le=1)] = Field(
        0.1, description="of the documents to be scored; those that are hard to score are missing in the figure"
    )
