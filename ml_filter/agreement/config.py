"""Configuration of aggregation, agreement and gates."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from ml_filter.config import Cli, Seed, StageConfig
from ml_filter.criterion import ScoreBounds
from ml_filter.documents.config import SourceConfig
from ml_filter.statistics.metrics import GateMetric

VoteMethod = Literal["mean", "median", "majority", "min", "max", "dawid-skene"]


class AggregateConfig(StageConfig):
    """How the votes on a document become one score."""

    method: VoteMethod = Field("mean", description="majority averages ties; dawid-skene rounds scores")
    use: Literal["expected", "answer"] = Field(
        "expected",
        description="expected: the score expected from log-probabilities, where available; answer: the parsed answer "
        "(default: expected; for majority: answer)",
    )

    @model_validator(mode="before")
    @classmethod
    def _majority_uses_answers(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("use") is None:
            return {**values, "use": "answer" if values.get("method") == "majority" else "expected"}
        return values

    @model_validator(mode="after")
    def _expected_scores_have_no_majority(self) -> Self:
        if (self.method, self.use) == ("majority", "expected"):
            raise ValueError(
                "majority counts equal votes, and expected scores are hardly ever equal: remove use to count the "
                "answers, or use the method median"
            )
        return self


class RankConfig(StageConfig):
    """Which documents to annotate next."""

    size: Annotated[int, Field(gt=0, description="number of documents")]
    by: Literal["disagreement", "expected-value"] = Field(
        "disagreement",
        description="disagreement: spread of the votes; expected-value: probability of a wrong decision at the "
        "threshold",
    )
    threshold: float | None = Field(
        None,
        description="documents with at least this score are kept; for expected-value (default: the threshold of the "
        "criterion)",
    )
    criterion: str | None = Field(None, description="criterion to rank by (default: the only one)")


class AgreementConfig(StageConfig):
    """Which ratings are compared, and how."""

    gold: Annotated[
        SourceConfig | None, Cli(metavar="FILE", options={"paths": "--gold", "id_column": "--gold-id-column"})
    ] = Field(None, description="human ratings, the reference of every comparison")
    gold_column: str = Field("human_score", description="column of gold with the ratings")
    rating_columns: Annotated[list[str], Cli(comma_separated=True)] = Field(
        [],
        description="columns of a rated table, each a rater; a list column has one rater per entry (default: score, or "
        "scores)",
    )
    id_column: str | None = Field(
        None, description="column of a rated table with the document id (default: id, document_id, or a hash of text)"
    )
    criterion: str | None = Field(None, description="criterion to compare (default: the only one)")
    by: Annotated[list[str], Cli(comma_separated=True)] = Field(
        [], description="columns of gold or of rated tables; each of their values is a stratum"
    )
    use: Literal["expected", "answer"] = Field(
        "expected",
        description="expected: the score expected from log-probabilities, where available; answer: the parsed answer",
    )
    votes_as_raters: bool = Field(False, description="each vote of an annotator is a rater, instead of their mean")
    score_range: Annotated[ScoreBounds | None, Cli(metavar="LOW HIGH")] = Field(
        None, description="lowest and highest score, if no input was made by ml-filter (default: not known)"
    )
    threshold: float | None = Field(
        None,
        description="documents with at least this rounded score count as good (default: the threshold of the inputs' "
        "criterion; if no input was made by ml-filter the middle of score_range, or 3)",
    )
    confidence: Annotated[float, Field(gt=0, lt=1)] = Field(0.95, description="share of the resamples in an interval")
    resamples: Annotated[int, Field(ge=100)] = Field(1000, description="bootstrap resamples of the documents")
    seed: Seed = Field(0, description="seed of the resampling")


class GateConfig(AgreementConfig):
    """How well scores must agree with human gold for a run to continue."""

    gold: SourceConfig = Field(description="human ratings, the reference of every comparison")
    metric: GateMetric = Field("spearman", description="figure that must reach min_agreement")
    min_agreement: float = Field(0.6, description="least lower bound of the metric's interval")
    min_documents: Annotated[int, Field(ge=3)] = Field(
        30, description="least number of compared documents, overall and per stratum"
    )
    small_strata: Literal["stop", "report"] = Field(
        "stop", description="whether a stratum with fewer documents stops the run, or is only reported"
    )
    max_failed_share: Annotated[float, Field(ge=0, le=1)] = Field(
        0.1,
        description="greatest share of documents without a score; documents that are hard to score would otherwise be "
        "missing from the metric unnoticed",
    )
