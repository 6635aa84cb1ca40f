"""Configuration of training a head and searching its settings."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from ml_filter.config import Cli, Seed, StageConfig
from ml_filter.criterion import ScoreBounds
from ml_filter.prepare.config import EMBEDDED_ENCODER
from ml_filter.statistics.metrics import ComparisonMetric

HeadKind = Literal["encoder", "hashing", "static", "stack"]
_Model = Literal["linear", "kernel", "mlp"]
_Task = Literal["regression", "classification", "ordinal"]
Layers = Annotated[int, Field(ge=1)] | Literal["middle", "all"]

_Share = Annotated[float, Field(ge=0, le=1)]
_Rate = Annotated[float, Field(gt=0)]
_Count = Annotated[int, Field(ge=1)]
_Size = Annotated[int, Field(ge=2)]


class HeadSettings(StageConfig):
    """The head on the embeddings. An mlp, and a task other than regression, are trained step by step."""

    model: _Model = Field("kernel", description="form of the function from embeddings to scores")
    task: _Task = Field("regression", description="how labels are fitted; a kernel is always a regression")
    size: _Size = Field(2000, description="maximum number of landmarks of a kernel; hidden width of an mlp")
    length: _Rate = Field(
        1.0, description="length scale of a kernel, in root mean square distances between two documents"
    )
    balance: _Share = Field(
        0.5, description="weight of a label is its frequency to the power of -balance; 0: all have the same weight"
    )
    learning_rate: _Rate = Field(1e-3, description="peak learning rate of step-by-step training")
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.1, description="weight decay of step-by-step training")
    epochs: _Count = Field(50, description="maximum number of epochs")
    warmup_share: Annotated[float, Field(ge=0, lt=1)] = Field(0.1, description="share of all steps for warm-up")
    schedule: Literal["cosine", "linear"] = Field("linear", description="decay of the learning rate after warm-up")
    metric: Literal["spearman", "macro_f1", "loss"] = Field(
        "loss", description="chooses the epoch whose weights are kept: mean over the criteria on a held-out tenth"
    )
    patience: _Count = Field(5, description="epochs without a better metric before training stops")

    @model_validator(mode="after")
    def _kernels_are_solved(self) -> Self:
        if self.model == "kernel" and self.task != "regression":
            raise ValueError(f"a kernel head is a regression; for task {self.task} set head.model to linear or mlp")
        return self


class FinetuneConfig(StageConfig):
    """How the encoder is trained together with its head. Learning rates, epochs and batch size: Devlin et al. 2019,
    appendix A.3."""

    layers: _Count | None = Field(None, description="number of top transformer layers to train (default: all)")
    learning_rate: _Rate = Field(3e-5, description="peak learning rate of the encoder")
    head_learning_rate: _Rate = Field(3e-4, description="peak learning rate of the head")
    epochs: _Count = Field(4, description="maximum number of epochs")
    batch_size: _Count = Field(16, description="documents per batch and process (GPU)")
    gradient_accumulation: _Count = Field(1, description="batches per step")
    warmup_share: Annotated[float, Field(ge=0, lt=1)] = Field(0.1, description="share of all steps for warm-up")
    schedule: Literal["cosine", "linear"] = Field("linear", description="decay of the learning rates after warm-up")
    weight_decay: Annotated[float, Field(ge=0)] = Field(
        0.01, description="weight decay of matrices; biases and norms have none"
    )
    max_grad_norm: _Rate = Field(1.0, description="norm to which gradients are clipped")
    gradient_checkpointing: bool = Field(False, description="use less memory, for about a third more time")
    metric: Literal["spearman", "macro_f1", "loss"] = Field(
        "spearman", description="chooses the checkpoint: mean over the criteria on the validation documents"
    )
    patience: _Count | None = Field(
        3, description="evaluations without a better metric before training stops (None: never)"
    )
    checkpoint_steps: _Count | None = Field(
        None, description="steps between evaluations, each of which writes a checkpoint (default: one epoch)"
    )
    log_steps: _Count = Field(10, description="steps between log lines")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="number type of the encoder's matrix products; auto: bfloat16 if the hardware multiplies it faster",
    )
    processes: _Count | None = Field(None, description="number of processes (default: one per GPU, or one)")


class TrainConfig(StageConfig):
    """How a head is trained."""

    kind: HeadKind = Field(
        "encoder",
        description="encoder: a head on a transformer encoder; hashing and static: much faster; stack: encoder and "
        "hashing combined",
    )
    encoder: str = Field(EMBEDDED_ENCODER, description="encoder: a name on the Hub, a directory, or an installed one")
    layers: Layers = Field(
        "middle",
        description="hidden states that the head uses: those at a third, half and two thirds of the depth (middle), of "
        "this many last layers, or of all; layers above them are removed",
    )
    max_tokens: Annotated[int, Field(ge=8)] = Field(512, description="tokens read from a document, or from each window")
    text_prefix: str | None = Field(
        None,
        description="text before each document, such as 'passage: ' for E5 (default: from the encoder's "
        "config_sentence_transformers.json, or none)",
    )
    windows: _Count = Field(1, description="maximum number of windows for a long document")
    combine: Literal["mean", "max"] = Field("mean", description="how the scores of windows are combined")
    head: HeadSettings = HeadSettings()
    finetune: FinetuneConfig | None = Field(None, description="train the encoder, too (default: it stays frozen)")
    label_column: str | list[str] = Field(
        "score", description="column of the labels; several, or a column of lists: one per criterion"
    )
    criterion: str | list[str] | None = Field(
        None, description="criteria of aggregated scores (default: all), or names of the items of a list column"
    )
    trust_agreement: bool = Field(False, description="give aggregated scores less weight if their votes disagree")
    calibration: Literal["isotonic", "platt"] | None = Field(
        "isotonic", description="method for the probability that a document is good (None: no calibration)"
    )
    test_share: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.2, description="share of the documents held out for the test"
    )
    near_duplicates: Annotated[float, Field(gt=0, le=1)] = Field(
        0.8, description="estimated Jaccard similarity from which documents are on the same side of every split"
    )
    score_range: Annotated[ScoreBounds | None, Cli(metavar="LOW HIGH")] = Field(
        None, description="lowest and highest label, for labels that ml-filter did not make (default: 0 and 5)"
    )
    threshold: float | None = Field(
        None,
        description="documents with at least this label count as good (default: the threshold of the labels' "
        "criterion; for labels that ml-filter did not make the middle of score_range, or 3)",
    )
    seed: Seed = Field(0, description="seed of the choice of test documents and of training")

    @field_validator("label_column", "criterion")
    @classmethod
    def _unwrap_single_name(cls, names: str | list[str] | None) -> str | list[str] | None:
        """A list of one name is the same configuration as the name."""
        return names[0] if isinstance(names, list) and len(names) == 1 else names

    @model_validator(mode="after")
    def _only_gradients_train_an_encoder(self) -> TrainConfig:
        if self.finetune is not None and (self.kind != "encoder" or self.head.model == "kernel"):
            raise ValueError("finetune requires kind encoder and head.model linear or mlp; set these, or leave it out")
        return self


class SearchSpace(StageConfig):
    """The settings to try: a list holds values, a pair the ends of a range."""

    kind: list[HeadKind] = Field(
        ["encoder", "hashing", "static", "stack"], min_length=1, description="kinds of head to try"
    )
    layers: list[Layers] = Field(["middle", 1, 4, "all"], min_length=1, description="values of train.layers")
    model: list[_Model] = Field(["linear", "kernel", "mlp"], min_length=1, description="values of train.head.model")
    task: list[_Task] = Field(
        ["regression", "classification", "ordinal"],
        min_length=1,
        description="values of train.head.task for linear and mlp",
    )
    landmarks: list[_Size] = Field([250, 500, 1000, 2000], min_length=1, description="sizes of a kernel")
    width: list[_Size] = Field([32, 128, 512], min_length=1, description="sizes of an mlp")
    balance: tuple[_Share, _Share] = Field((0.0, 1.0), description="range of train.head.balance")
    # Only for step-by-step training. Other heads choose their penalty by the exact leave-one-out error in each fit.
    learning_rate: tuple[_Rate, _Rate] = Field((1e-4, 1e-2), description="range of train.head.learning_rate")
    weight_decay: tuple[_Rate, _Rate] = Field((1e-3, 1.0), description="range of train.head.weight_decay")

    @model_validator(mode="after")
    def _ranges_rise(self) -> Self:
        for name in ("balance", "learning_rate", "weight_decay"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name}: the lower end of the range must come first, not {low:g} before {high:g}")
        return self

    @model_validator(mode="after")
    def _kernels_are_solved(self) -> Self:
        if "kernel" in self.model and "regression" not in self.task:
            raise ValueError("a kernel head is a regression: add regression to task, or leave kernel out of model")
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
    ] = Field(TrainConfig(), description="settings of the first trial, and those outside the space")
    space: Annotated[SearchSpace, Cli(options={"kind": "--kind"})] = SearchSpace()
    trials: _Count = Field(40, description="number of trials")
    metric: ComparisonMetric = Field("spearman", description="figure to maximize, mean over the criteria")
    resamples: Annotated[int, Field(ge=100)] = Field(200, description="bootstrap resamples for the standard errors")
    seed: Seed = Field(0, description="seed of the trials; train.seed chooses the test documents")

    @model_validator(mode="after")
    def _encoder_is_frozen(self) -> Self:
        if self.train.finetune is not None:
            raise ValueError("a search requires a frozen encoder; leave train.finetune out, and add it afterwards")
        return self


class EngineConfig(StageConfig):
    """What runs an encoder, and on which device."""

    batch_tokens: Annotated[int, Field(ge=64)] | None = Field(
        None, description="padded tokens per batch (default: 2048 on a CPU, 65536 on a GPU with enough memory)"
    )
    engine: Literal["auto", "torch", "openvino"] = Field(
        "auto",
        description="what runs the encoder; auto: torch, but on a CPU with a large corpus the faster of both, as timed "
        "on some of its documents",
    )
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1 or mps")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="number type of the encoder; auto: bfloat16 if the hardware multiplies it faster; on a CPU with a "
        "large corpus both are timed with `engine`",
    )
