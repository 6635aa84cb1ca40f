"""Configuration of the pipelines: one model each, made of the configurations of their stages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Self

from pydantic import (
    Field,
    field_validator,
    model_validator,
)

from ml_filter.agreement.config import AggregateConfig, GateConfig
from ml_filter.annotation.config import AnnotateConfig
from ml_filter.annotation.prompt_files import criterion_of
from ml_filter.config import StageConfig, names_of
from ml_filter.documents.config import SourceConfig
from ml_filter.evaluation.config import PromoteConfig
from ml_filter.heads.config import TrainConfig
from ml_filter.prepare.config import DecontaminateConfig, DeduplicateConfig, SampleConfig
from ml_filter.publishing.config import PublishConfig
from ml_filter.scoring.config import CascadeConfig, ScoreConfig
from ml_filter.selection.config import FilterConfig
from ml_filter.tracking import TrackingConfig


class _PipelineConfig(StageConfig):
    output: str = Field("runs", description="directory under which each stage gets one of its own")
    tracking: TrackingConfig = TrackingConfig()


def as_gates(given: Any) -> list[Any]:
    """What stands under `gate`: none, one gate or a list of them, as a list."""
    return [] if given is None else given if isinstance(given, list) else [given]


def golds_of(gates: Sequence[GateConfig]) -> list[SourceConfig]:
    """The gold of the gates, each once, though gates may share it."""
    golds: list[SourceConfig] = []
    for gate in gates:
        if gate.gold not in golds:
            golds.append(gate.gold)
    return golds


class AnnotationPipelineConfig(_PipelineConfig):
    """Parameters of the annotation pipeline."""

    source: SourceConfig = SourceConfig()
    sample: SampleConfig
    deduplicate: DeduplicateConfig | None = DeduplicateConfig()
    decontaminate: DecontaminateConfig | None = Field(None, description="the gold of the gates is always kept out")
    annotate: AnnotateConfig = AnnotateConfig()
    jury: list[AnnotateConfig] = Field([], description="more annotators, beside `annotate`")
    aggregate: AggregateConfig = AggregateConfig()
    gate: list[GateConfig] = Field(
        [], description="the gold documents are annotated first, and must pass; one gate, or a list of them"
    )
    publish: PublishConfig | None = Field(None, description="write, and where told push, a labelled data set")

    @field_validator("gate", mode="before")
    @classmethod
    def _one_gate_is_a_list(cls, given: Any) -> Any:
        return as_gates(given)

    @model_validator(mode="after")
    def _keep_gold_out(self) -> Self:
        """What the gates measure with never gets into the sample, whatever else is kept out."""
        against = list(self.decontaminate.against) if self.decontaminate else []
        against += [gold for gold in golds_of(self.gate) if gold not in against]
        if against:
            settings = self.decontaminate or DecontaminateConfig(against=against)
            # The model is frozen for those who use it; this is still its making.
            object.__setattr__(self, "decontaminate", settings.model_copy(update={"against": against}))
        return self

    @model_validator(mode="after")
    def _choose_of_several_criteria(self) -> Self:
        """Which criterion is meant must be clear before anything is paid for."""
        found = list(dict.fromkeys(criterion_of(name) for one in (self.annotate, *self.jury) for name in one.prompts))
        for setting, criterion in self._choices():
            if criterion is None and len(found) > 1:
                raise ValueError(f"{setting} is unset, and the prompts score {', '.join(found)}: set it to one of them")
            if criterion is not None and criterion not in found:
                raise ValueError(f"{setting} is {criterion!r}, and the prompts score {', '.join(found)}")
        return self

    def _choices(self) -> list[tuple[str, str | None]]:
        """The settings that choose a criterion, and what they choose."""
        one = len(self.gate) == 1
        chosen = [
            (f"gate.criterion{'' if one else f' (of gate {n})'}", g.criterion) for n, g in enumerate(self.gate, 1)
        ]
        published = names_of(self.publish.criterion) if self.publish else []
        return [*chosen, *(("publish.criterion", name) for name in published)]


class TrainingPipelineConfig(_PipelineConfig):
    """Parameters of the training pipeline. `labels` is a labelled source or a directory of aggregated scores."""

    labels: SourceConfig
    train: TrainConfig = TrainConfig()
    gold: SourceConfig | None = Field(None, description="documents with human labels to evaluate on as well")
    gold_label_column: str | dict[str, str] = Field(
        "human_score", description="of a head of several criteria, {criterion: column} for each that gold has labels of"
    )
    promote: PromoteConfig | None = Field(None, description="needs gold; unset: the version stays without a stage")

    @model_validator(mode="after")
    def _promotion_needs_gold(self) -> Self:
        if self.promote is not None and self.gold is None:
            raise ValueError("promote needs gold: a head without human labels to pass on is never promoted")
        return self

    @model_validator(mode="after")
    def _criteria_have_columns(self) -> Self:
        """Said before anything is trained, as far as it is known then."""
        names = self.train.label_column if self.train.criterion is None else self.train.criterion
        several, columns = names if isinstance(names, list) else [], self.gold_columns
        if self.gold is not None and several and not set(columns) <= set(several):
            raise ValueError(
                f"the head has the criteria {', '.join(several)}: give gold_label_column as {{criterion: column}} of "
                "these"
            )
        if self.promote is not None and self.promote.criterion not in columns:
            raise ValueError(
                f"promote.criterion: choose one of {', '.join(map(str, columns))}, which gold has labels of"
            )
        return self

    @property
    def gold_columns(self) -> dict[str | None, str]:
        """The column of the gold for each criterion; of None: the head's only one."""
        return columns_of(self.gold_label_column, self.promote)


def columns_of(label_column: str | dict[str, str], promote: PromoteConfig | None) -> dict[str | None, str]:
    """The column of the gold for each criterion that has one; of None: the head's only one."""
    columns: dict[str | None, str] = {}
    if isinstance(label_column, dict):
        columns.update(label_column.items())
        return columns
    return {promote.criterion if promote else None: label_column}


class ScoringPipelineConfig(_PipelineConfig):
    """Parameters of the scoring pipeline."""

    head: str = Field(description="directory of a trained head, hf://OWNER/NAME[@REVISION], or zenml:MODEL@VERSION")
    source: SourceConfig = SourceConfig()
    score: ScoreConfig = ScoreConfig()
    cascade: CascadeConfig | None = Field(
        None, description="build a cascade, whose first-stage model decides the clear cases; default: no cascade"
    )
    shard_groups: Annotated[int, Field(ge=1)] = Field(
        1, description="steps that share the shards, at the same time where the orchestrator runs steps so"
    )
    usd_per_worker_hour: Annotated[float, Field(ge=0)] | None = Field(
        None, description="what an hour of one worker costs; the report says what scoring cost then"
    )
    filter: FilterConfig


class EndToEndPipelineConfig(AnnotationPipelineConfig):
    """Parameters of the end-to-end pipeline: samples, trains on and scores the same source."""

    train: TrainConfig = TrainConfig()
    score: ScoreConfig = ScoreConfig()
    filter: FilterConfig

    def _choices(self) -> list[tuple[str, str | None]]:
        """As above; the head has the criteria that it is trained on, and the filter ranks by one of them."""
        trained = names_of(self.train.criterion)
        ranked = self.filter.criterion or (trained[0] if len(trained) == 1 else None)
        return [*super()._choices(), *(("train.criterion", name) for name in trained), ("filter.criterion", ranked)]
