"""Configuration of ablations."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from ml_filter.config import Cli, Seed, StageConfig
from ml_filter.documents.config import SourceConfig
from ml_filter.downstream.benchmarks.config import BenchmarkConfig

FILTERED, RANDOM, REJECTED, SHUFFLED = "filtered", "random", "rejected", "shuffled"
ARMS = (FILTERED, RANDOM, REJECTED, SHUFFLED)
_Count = Annotated[int, Field(ge=1)]


class TrainingConfig(StageConfig):
    """How the model of an arm is trained. Its size follows from the depth."""

    depth: Annotated[int, Field(ge=1, le=32)] = Field(
        2,
        description="layers of the models; width, heads, vocabulary, context, batch and learning rates follow: 2 has "
        "0.95 million parameters and suits a laptop, 12 has 135 million and needs a GPU",
    )
    passes: _Count = Field(
        3, description="how often each token of an arm is read; up to four passes are almost as good as new tokens"
    )
    learning_rates: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1)] = Field(
        [1.0, 0.5], description="factors on the learning rates; the seeds of an arm take turns with them"
    )
    seeds: Annotated[int, Field(ge=2)] = Field(4, description="models of the arms filtered and random")
    control_seeds: Annotated[int, Field(ge=2)] = Field(3, description="models of each other arm")
    seed: Seed = Field(0, description="the first seed; it chooses weights, order and random documents")
    checkpoint_steps: _Count = Field(
        100, description="steps between checkpoints: as many, at most, are repeated after a kill"
    )
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1 or mps")
    workers: _Count | None = Field(
        None, description="models that are trained at the same time (default: one for each GPU, or for each core)"
    )

    @model_validator(mode="after")
    def _check_seeds(self) -> Self:
        if self.control_seeds > self.seeds:
            raise ValueError(
                f"control_seeds is {self.control_seeds}, more than seeds ({self.seeds}): a model is compared with the "
                "random one of its seed"
            )
        if min(self.seeds, self.control_seeds) < len(self.learning_rates):
            raise ValueError(
                f"seeds is {self.seeds} and control_seeds is {self.control_seeds}, fewer than the "
                f"{len(self.learning_rates)} learning_rates, each of which needs a seed"
            )
        return self


class AblateConfig(BenchmarkConfig):
    """Whether a model learns more from what a filter keeps than from as many random documents of the same corpus."""

    gold: Annotated[
        SourceConfig,
        Cli(metavar="SOURCE", options={"paths": "--gold"}),
    ] = Field(description="documents with scores, best by people: those with high and low scores are the targets")
    gold_column: str = Field("human_score", description="column of gold with the scores")
    high: float = Field(3.0, description="gold with at least this score is the target that decides")
    low: float = Field(1.0, description="gold with at most this score is the target shown beside it")
    targets: dict[str, SourceConfig] = Field({}, description="further corpora to report on, by name")
    target_bytes: Annotated[int, Field(ge=256)] = Field(
        8192, description="bytes of each target document that are read, from its start"
    )
    corpora: dict[str, SourceConfig] = Field({}, description="further corpora to train on, by the name of their arm")
    arm_tokens: _Count | None = Field(
        None, description="unique tokens of each arm (default: as many as the filter keeps, or drops if that is less)"
    )
    ngram_words: _Count = Field(
        13, description="a document of the corpus that shares as many words in a row with a target is left out"
    )
    training: Annotated[
        TrainingConfig,
        Cli(
            options={
                "depth": "--depth",
                "passes": "--passes",
                "seeds": "--seeds",
                "control_seeds": "--control-seeds",
                "workers": "--workers",
                "device": "--device",
            }
        ),
    ] = Field(TrainingConfig(), description="how the models are trained")
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = Field(0.95, description="confidence of the intervals")
    resamples: Annotated[int, Field(ge=100)] = Field(2000, description="bootstrap resamples for the intervals")
    pilot: str | None = Field(
        None, description="directory of an earlier ablation, whose variance states the power (default: a measured one)"
    )

    @property
    def of_arms(self) -> dict[str, Any]:
        """The settings that the models and their bits depend on; the others say how and where, or are of the report."""
        training = {"workers": True, "device": True, "checkpoint_steps": True}
        of_report = dict.fromkeys(("confidence", "resamples", "pilot", *BenchmarkConfig.model_fields), True)
        return self.model_dump(mode="json", exclude={**of_report, "training": training})

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low is {self.low:g}, not below high ({self.high:g})")
        for setting, names, taken in (("corpora", self.corpora, ARMS), ("targets", self.targets, ("high", "low"))):
            for name in names:
                if name in taken or not name.replace("_", "").isalnum():
                    raise ValueError(
                        f"{setting}: choose another name than {name!r}, of letters, digits and _ and not "
                        f"{', '.join(taken)}"
                    )
        return self
