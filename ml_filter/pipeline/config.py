"""Configuration of the pipelines: one model each, made of the configurations of their stages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Self

from pydantic import Field, field_validator, model_validator

from ml_filter.agreement.config import AggregateConfig, GateConfig
from ml_filter.annotation.config import AnnotateConfig
from ml_filter.annotation.prompt_files import criterion_of
from ml_filter.config import StageConfig, names_of
from ml_filter.documents.config import SourceConfig
from ml_filter.errors import ConfigError
from ml_filter.evaluation.config import PromoteConfig
from ml_filter.heads.config import TrainConfig
from ml_filter.prepare.config import DecontaminateConfig, DeduplicateConfig, SampleConfig
from ml_filter.publishing.config import (
    CorpusWarehouseConfig,
    LabelWarehouseConfig,
    PublishConfig,
    WarehouseConfig,
)
from ml_filter.reporting.config import DriftConfig
from ml_filter.scoring.config import CascadeConfig, ScoreConfig
from ml_filter.selection.config import FilterConfig
from ml_filter.tracking import TrackingConfig


class _PipelineConfig(StageConfig):
    output: str = Field("runs", description="directory with a subdirectory for the result of each stage")
    tracking: TrackingConfig = Field(TrackingConfig(), description="where figures and pages of the run are recorded")


class AnnotationPipelineConfig(_PipelineConfig):
    """Parameters of the annotation pipeline."""

    source: SourceConfig = Field(SourceConfig(), description="documents to sample from")
    sample: SampleConfig = Field(description="how the sample is drawn")
    deduplicate: DeduplicateConfig | None = Field(
        DeduplicateConfig(), description="how duplicates are dropped; null keeps them"
    )
    decontaminate: DecontaminateConfig | None = Field(
        None, description="texts to keep out of the sample; gold is always kept out"
    )
    annotate: AnnotateConfig = Field(AnnotateConfig(), description="the first annotator")
    jury: list[AnnotateConfig] = Field([], description="further annotators")
    aggregate: AggregateConfig = Field(AggregateConfig(), description="how votes become scores")
    gate: list[GateConfig] = Field(
        [], description="a gate or a list of gates: their gold is annotated first and the scores must agree with it"
    )
    publish: PublishConfig | None = Field(None, description="a labelled data set to write (default: none)")
    warehouse: LabelWarehouseConfig | None = Field(
        None, description="MongoDB collections for annotations and scores (default: none)"
    )

    @field_validator("gate", mode="before")
    @classmethod
    def _one_gate_is_a_list(cls, gate: Any) -> Any:
        return [] if gate is None else gate if isinstance(gate, list) else [gate]

    @property
    def annotators(self) -> list[AnnotateConfig]:
        """The first annotator and the jury."""
        return [self.annotate, *self.jury]

    @property
    def evaluated_on(self) -> list[SourceConfig]:
        """Documents that results are measured on, which must not be trained on."""
        return golds_of(self.gate)


def golds_of(gates: Sequence[GateConfig]) -> list[SourceConfig]:
    """The gold of the gates without repetitions, since gates may share it."""
    return list({gate.gold.model_dump_json(): gate.gold for gate in gates}.values())


def held_out_documents(config: AnnotationPipelineConfig) -> DecontaminateConfig | None:
    """What is kept out of the sample: the configured texts and what is evaluated on; None if there is nothing."""
    against = list(config.decontaminate.against) if config.decontaminate else []
    against += [source for source in config.evaluated_on if source not in against]
    if not against:
        return None
    settings = config.decontaminate or DecontaminateConfig(against=against)
    return settings.model_copy(update={"against": against})


def check_criteria(config: AnnotationPipelineConfig) -> None:
    """Check that the criteria chosen in the settings are criteria of the prompts.

    Reads the prompt files. The pipelines call it before anything is paid for.

    Raises:
        ConfigError: a choice is unknown, or missing although the prompts score several criteria.
    """
    prompts = [prompt for annotator in config.annotators for prompt in annotator.prompts]
    criteria = list(dict.fromkeys(map(criterion_of, prompts)))
    for setting, criterion in _criterion_settings(config):
        if criterion is None and len(criteria) > 1:
            raise ConfigError(f"{setting} is not set, and the prompts score {', '.join(criteria)}: choose one of them")
        if criterion is not None and criterion not in criteria:
            raise ConfigError(f"{setting} is {criterion!r}, but the prompts score {', '.join(criteria)}")


def _criterion_settings(config: AnnotationPipelineConfig) -> list[tuple[str, str | None]]:
    """The settings that choose a criterion, and their values."""
    gates = [(f"gate.criterion (of gate {number})", gate.criterion) for number, gate in enumerate(config.gate, 1)]
    if len(gates) == 1:
        gates = [("gate.criterion", config.gate[0].criterion)]
    published = names_of(config.publish.criterion) if config.publish else []
    settings = [*gates, *(("publish.criterion", name) for name in published)]
    if isinstance(config, ContinuousTrainingPipelineConfig):
        settings += [("train.criterion", name) for name in names_of(config.train.criterion)]
    if isinstance(config, EndToEndPipelineConfig):
        trained = names_of(config.train.criterion)
        # A head that is trained on one criterion has only that one to filter by.
        filtered = config.filter.criterion or (trained[0] if len(trained) == 1 else None)
        settings += [*(("train.criterion", name) for name in trained), ("filter.criterion", filtered)]
    return settings


class _HeadPipelineConfig(_PipelineConfig):
    train: TrainConfig = Field(TrainConfig(), description="how the head is trained")
    gold: SourceConfig | None = Field(None, description="documents with human labels, for another evaluation")
    gold_label_column: str | dict[str, str] = Field(
        "human_score", description="column of gold with the labels; for several criteria {criterion: column}"
    )
    promote: PromoteConfig | None = Field(
        None, description="when the head replaces the current one; requires gold (default: the version gets no stage)"
    )

    @model_validator(mode="after")
    def _promotion_needs_gold(self) -> Self:
        if self.promote is not None and self.gold is None:
            raise ValueError("promote requires gold: a head is only promoted if it agrees with human labels")
        return self

    @model_validator(mode="after")
    def _criteria_have_columns(self) -> Self:
        names = self.train.label_column if self.train.criterion is None else self.train.criterion
        criteria, columns = names if isinstance(names, list) else [], self.gold_columns
        if self.gold is not None and criteria and not set(columns) <= set(criteria):
            raise ValueError(
                f"the head has the criteria {', '.join(criteria)}: set gold_label_column to {{criterion: column}} for "
                "these"
            )
        if self.promote is not None and self.promote.criterion not in columns:
            raise ValueError(
                f"promote.criterion: choose one of {', '.join(map(str, columns))}, which gold has labels for"
            )
        return self

    @property
    def gold_columns(self) -> dict[str | None, str]:
        """The column of the gold for each criterion that has one; None is the only criterion of a head."""
        if isinstance(self.gold_label_column, dict):
            return dict(self.gold_label_column.items())
        return {self.promote.criterion if self.promote else None: self.gold_label_column}


class TrainingPipelineConfig(_HeadPipelineConfig):
    """Parameters of the training pipeline."""

    labels: SourceConfig = Field(description="labelled documents, or a directory of aggregated scores")


class ContinuousTrainingPipelineConfig(AnnotationPipelineConfig, _HeadPipelineConfig):
    """Parameters of continuous training. `sample.size` and the budget of the annotators are for each run."""

    @property
    def evaluated_on(self) -> list[SourceConfig]:
        """Documents that the annotators, the head and its promotion are measured on."""
        return super().evaluated_on + [source for source in (self.gold, self.promote and self.promote.test) if source]


class ScoringPipelineConfig(_PipelineConfig):
    """Parameters of the scoring pipeline."""

    head: str = Field(description="directory of a trained head, hf://OWNER/NAME[@REVISION], or zenml:MODEL@VERSION")
    source: SourceConfig = Field(SourceConfig(), description="the corpus")
    score: ScoreConfig = Field(ScoreConfig(), description="how the corpus is scored")
    cascade: CascadeConfig | None = Field(
        None, description="build a cascade, whose first-stage model decides the clear cases (default: no cascade)"
    )
    shard_groups: Annotated[int, Field(ge=1)] = Field(
        1, description="number of steps that share the shards; an orchestrator may run them at the same time"
    )
    drift: DriftConfig | None = Field(
        None, description="limits of the difference from the training documents of the head (default: no alert)"
    )
    usd_per_worker_hour: Annotated[float, Field(ge=0)] | None = Field(
        None, description="price of one worker hour, to report what scoring cost (default: not reported)"
    )
    filter: FilterConfig = Field(description="which documents are kept")
    warehouse: CorpusWarehouseConfig | None = Field(
        None, description="MongoDB collections for scored and filtered documents (default: none)"
    )


class EndToEndPipelineConfig(AnnotationPipelineConfig):
    """Parameters of the end-to-end pipeline, which samples, trains on and scores the same source."""

    train: TrainConfig = Field(TrainConfig(), description="how the head is trained")
    score: ScoreConfig = Field(ScoreConfig(), description="how the source is scored")
    filter: FilterConfig = Field(description="which documents are kept")
    warehouse: WarehouseConfig | None = Field(None, description="MongoDB collections for the results (default: none)")
