"""Train with the SFT and DPO trainers of TRL, with checkpoints that survive a kill.

The trainers get tokens, so that rendering, masking and the split are the same for both and are done once. What they
would send or write beside the training (telemetry, a draft of a model card) is turned off.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from loguru import logger

from ml_filter.downstream.tuning.base import Base, load_model, quiet_libraries
from ml_filter.downstream.tuning.config import TuneConfig
from ml_filter.downstream.tuning.data import HELD_OUT_FILE, TRAIN_FILE
from ml_filter.errors import InputError
from ml_filter.heads.checkpoints import deterministic, history_of, is_finished, last_complete, read_state
from ml_filter.heads.device import choose_device, multiplies_bfloat16
from ml_filter.progress import progress

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

    from ml_filter.progress import Progress

FIGURES = {
    "loss": "loss",
    "grad_norm": "gradient norm",
    "learning_rate": "learning rate",
    "rewards/margins": "reward margin",
    "rewards/accuracies": "reward accuracy",
    "rewards/chosen": "reward of chosen",
    "rewards/rejected": "reward of rejected",
    "mean_token_accuracy": "token accuracy",
}
"""What the trainers log and the curves show, with their titles; of the held-out set as `eval_...`."""


_CPU_SECONDS = "cpu_seconds"


class Training(NamedTuple):
    """A finished training.

    Attributes:
        checkpoint: the last one.
        history: a row for each logged or evaluated step: `step`, `epoch` and those of FIGURES.
        earlier_seconds: the processor time of killed runs, up to the checkpoint that this one has resumed from.
    """

    checkpoint: Path
    history: list[dict[str, float]]
    earlier_seconds: float


def train(
    base: Base, tokenizer: PreTrainedTokenizerBase, config: TuneConfig, directory: Path, started: float
) -> Training:
    """Train on the tokens in a directory, which also gets the checkpoints; a killed run resumes from the last one.

    Args:
        started: processor time of this process, in seconds, at which it began to work on the model.

    Raises:
        InputError: no complete checkpoint was written, because the disk is full.
    """
    checkpoint = last_complete(directory)
    earlier = _seconds_until(checkpoint)
    if checkpoint is None or not is_finished(read_state(checkpoint)):
        with deterministic(), quiet_libraries():
            # As if this process had done all the work.
            _train(base, tokenizer, config, directory, checkpoint, started - earlier)
        checkpoint = last_complete(directory)
    if checkpoint is None:
        raise InputError(f"tuning left no complete checkpoint in {directory}; check that its disk is not full")
    names = ("step", "epoch", *FIGURES, *(f"eval_{name}" for name in FIGURES))
    rows = history_of(read_state(checkpoint), names)
    return Training(checkpoint, [{name: row[name] for name in names if name in row} for row in rows], earlier)


def _seconds_until(checkpoint: Path | None) -> float:
    """The processor time that a checkpoint has taken, in all processes."""
    if checkpoint is None:
        return 0.0
    return max((row[_CPU_SECONDS] for row in read_state(checkpoint).log_history if _CPU_SECONDS in row), default=0.0)


def matrix_dtype(config: TuneConfig) -> torch.dtype:
    """The number type of matrix products."""
    import torch

    device = choose_device("auto")
    is_half = config.dtype == "bfloat16" or (
        config.dtype == "auto" and device.type == "cuda" and multiplies_bfloat16(device)
    )
    return torch.bfloat16 if is_half else torch.float32


def _train(
    base: Base,
    tokenizer: PreTrainedTokenizerBase,
    config: TuneConfig,
    directory: Path,
    resume_from: Path | None,
    started: float,
) -> None:
    from datasets import Dataset
    from transformers import PrinterCallback

    data = {
        name: Dataset.from_file(str(directory / file))
        for name, file in (("train_dataset", TRAIN_FILE), ("eval_dataset", HELD_OUT_FILE))
    }
    with progress("Tuning") as bar:
        trainer = _trainer_class(config.method)(
            model=_load(base, config),
            args=_arguments(config, directory),
            processing_class=tokenizer,
            peft_config=_lora(config) if config.is_adapter else None,
            callbacks=_callbacks(bar, started),
            **data,
        )
        trainer.remove_callback(PrinterCallback)  # it prints to standard output, which is reserved for results
        if resume_from is not None:
            logger.info(f"Resuming from {resume_from.name}")
        trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)


def _load(base: Base, config: TuneConfig) -> PreTrainedModel:
    import torch
    from transformers import BitsAndBytesConfig

    dtype = matrix_dtype(config)
    options: dict[str, Any] = {"dtype": torch.float32}  # mixed precision: the weights that are trained are float32
    if config.is_adapter:
        options["dtype"] = dtype
    if config.weights == "qlora":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
        options["device_map"] = {"": choose_device("auto")}
    model: PreTrainedModel = load_model(base.directory, **options)
    if config.weights == "qlora":
        from bitsandbytes.nn.modules import Linear4bit

        for module in model.modules():
            if isinstance(module, Linear4bit):
                # On CPUs with AVX-512 BF16 an evaluation would pack the weights for a kernel that has no gradient, and
                # the training after it would go wrong without an error.
                module.support_avx512bf16_for_cpu = False
    return model


def _lora(config: TuneConfig) -> Any:
    from peft import LoraConfig

    lora = config.lora
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.targets,
        task_type="CAUSAL_LM",
    )


def _arguments(config: TuneConfig, directory: Path) -> Any:
    import torch
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.sft_config import SFTConfig

    device = choose_device("auto")
    common: dict[str, Any] = {
        "output_dir": str(directory),
        "seed": config.seed % 2**32,  # the largest seed of numpy
        "num_train_epochs": config.epochs,
        "max_steps": config.max_steps or -1,
        "per_device_train_batch_size": config.batch_size,
        "per_device_eval_batch_size": config.batch_size,
        "gradient_accumulation_steps": config.gradient_accumulation,
        "learning_rate": config.peak_learning_rate,
        "lr_scheduler_type": config.schedule,
        "warmup_steps": config.warmup_share,
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.max_grad_norm,
        "gradient_checkpointing": False,  # TRL's default is True, and this is the old name
        "activation_checkpointing": config.activation_checkpointing,
        "bf16": matrix_dtype(config) == torch.bfloat16,
        "use_cpu": device.type == "cpu",
        "eval_strategy": "steps",
        "save_strategy": "steps",
        "eval_on_start": True,
        "eval_steps": config.checkpoint_steps,
        "save_steps": config.checkpoint_steps,
        "logging_steps": config.log_steps,
        "dataloader_pin_memory": device.type == "cuda",
        "report_to": "none",
        "disable_tqdm": True,
    }
    if config.method == "dpo":
        arguments: Any = DPOConfig(**common, max_length=config.max_tokens, beta=config.beta)
    else:
        # The tokens are cut already; for packing, this is the length of a sequence.
        length = config.max_tokens if config.packing else None
        arguments = SFTConfig(**common, max_length=length, packing=config.packing, eval_packing=False)
    arguments._n_gpu = min(arguments.n_gpu, 1)  # TRL refuses DataParallel, which Trainer would choose for several
    return arguments


def _trainer_class(method: str) -> Any:
    from trl.trainer.dpo_trainer import DPOTrainer
    from trl.trainer.sft_trainer import SFTTrainer

    class Quiet:
        """Sends nothing, and drafts no model card."""

        def _send_telemetry(self) -> None: ...

        def create_model_card(self, *arguments: Any, **options: Any) -> None: ...

    class Sft(Quiet, SFTTrainer):
        pass

    class Dpo(Quiet, DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *arguments: Any) -> Any:
            return dataset  # of tokens already

    return Dpo if method == "dpo" else Sft


def _callbacks(bar: Progress, started: float) -> list[TrainerCallback]:
    from transformers import TrainerCallback

    from ml_filter.heads.checkpoints import KeepComplete

    class Steps(TrainerCallback):
        """Counts steps, logs the held-out loss, and notes the processor time so far in the state of the trainer."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            bar.total = state.max_steps
            bar.skip(0)
            bar.advance(state.global_step)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            bar.advance()

        def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            loss = kwargs["metrics"]["eval_loss"]
            logger.info(f"Step {state.global_step:,} of {state.max_steps:,}: held-out loss {loss:.4f}")

        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            state.log_history[-1][_CPU_SECONDS] = time.process_time() - started

    return [KeepComplete(), Steps()]
