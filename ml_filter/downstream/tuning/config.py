"""Configuration of fine-tuning."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ml_filter.config import HubName, Seed, StageConfig

EMBEDDED_BASE = "embedded"
_Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Count = Annotated[int, Field(ge=1)]
_Share = Annotated[float, Field(ge=0, lt=1)]
_DEFAULT_RATES = {
    ("sft", False): 2e-5,
    ("sft", True): 2e-4,
    ("dpo", False): 5e-7,
    ("dpo", True): 5e-6,
}
"""Peak learning rates by method and whether an adapter is trained. SFT: of all weights as in Tulu 2 (Ivison et al.
2023), of adapters as in QLoRA (Dettmers et al. 2023). DPO: as in Zephyr (Tunstall et al. 2023), for adapters ten times
that."""


class LoraSettings(StageConfig):
    """The adapter of LoRA and QLoRA (Hu et al. 2021)."""

    rank: _Count = Field(16, description="rank of the update of each matrix")
    alpha: _Count = Field(32, description="scale of the update; it is multiplied by alpha / rank")
    dropout: _Share = Field(0.05, description="dropout before the update, for SFT; DPO has none")
    targets: str | list[str] = Field(
        "all-linear", description="names of the matrices to adapt; all-linear: every one except the output layer"
    )


class TuneConfig(StageConfig):
    """How a language model is tuned."""

    base: str = Field(
        EMBEDDED_BASE,
        description="model to tune: a directory, also one that tune wrote, hf://OWNER/NAME[@REVISION], a name on the "
        "Hub, or embedded: the model of the embedded annotator",
    )
    method: Literal["sft", "dpo"] = Field(
        "sft", description="sft: learn the answers; dpo: learn to prefer the chosen answers (needs preference pairs)"
    )
    weights: Literal["full", "lora", "qlora"] = Field(
        "lora", description="what is trained: all weights, an adapter, or an adapter on a base of 4 bits (NF4)"
    )
    template: Literal["model", "chatml", "alpaca", "llama3", "phi3", "gemma"] = Field(
        "model", description="chat template; model: that of the base, or chatml if it has none"
    )
    max_tokens: Annotated[int, Field(ge=16)] = Field(1024, description="tokens of a conversation; the rest is cut off")
    packing: bool = Field(False, description="sft: put several conversations into one sequence of max_tokens")
    epochs: _Rate = Field(1, description="passes over the training data")
    max_steps: _Count | None = Field(None, description="number of steps, instead of epochs")
    batch_size: _Count = Field(4, description="conversations in a batch")
    gradient_accumulation: _Count = Field(4, description="batches in a step")
    learning_rate: _Rate | None = Field(
        None,
        description="peak learning rate (default: sft 2e-4 for an adapter, 2e-5 for all weights; dpo 5e-6 and 5e-7)",
    )
    warmup_share: _Share = Field(0.05, description="share of all steps for warm-up")
    schedule: Literal["cosine", "linear", "constant_with_warmup"] = Field(
        "cosine", description="the learning rate after warm-up"
    )
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.0, description="weight decay")
    max_grad_norm: _Rate = Field(1.0, description="norm to which gradients are clipped")
    activation_checkpointing: bool = Field(False, description="use less memory, for about a third more time")
    beta: _Rate = Field(0.1, description="dpo: how strongly the tuned model is kept close to the base")
    lora: LoraSettings = Field(LoraSettings(), description="the adapter")
    held_out_share: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.1, description="share of the documents whose conversations are held out"
    )
    max_held_out: _Count = Field(
        500, description="maximum number of held-out conversations, drawn at random; others are not used"
    )
    document_column: str = Field(
        "document_id",
        description="column with the document of a row; rows of one document are on the same side of the split",
    )
    checkpoint_steps: _Count = Field(50, description="steps between checkpoints, which also measure the held-out loss")
    log_steps: _Count = Field(5, description="steps between points of the curves")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="number type of matrix products; auto: bfloat16 on GPUs that have it, else float32"
    )
    gguf: bool = Field(True, description="write a GGUF file for the embedded annotator, if that is the base")
    license: str = Field("unknown", description="license identifier for the model card, such as apache-2.0")
    seed: Seed = Field(0, description="seed of the split, the order of the data, the adapter and dropout")
    push: HubName | None = Field(None, description="Hub repository to upload to, as OWNER/NAME")
    private: bool = Field(False, description="create the Hub repository as private; fail if it exists and is public")

    @model_validator(mode="after")
    def _packs_only_sft(self) -> Self:
        if self.packing and self.method == "dpo":
            raise ValueError("packing is for sft; a preference pair is always a separate sequence")
        return self

    @property
    def is_adapter(self) -> bool:
        """Whether an adapter is trained instead of the base's own weights."""
        return self.weights != "full"

    @property
    def peak_learning_rate(self) -> float:
        """`learning_rate`, or its default."""
        return self.learning_rate or _DEFAULT_RATES[self.method, self.is_adapter]
