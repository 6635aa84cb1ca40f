"""Train an encoder together with its head, with the Trainer of transformers.

Trainer has the loop, mixed precision, gradient accumulation and distributed data parallelism. This module adds what
long runs need: checkpoints that are used only if they are complete, an order of documents that depends only on seed and
epoch, and a loss in which a document's weight means the same in every batch.

The same command trains on a CPU, on one GPU or on several: `finetune` starts one process per GPU, while the rest of the
stage runs once. Do not use `accelerate launch`.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from filelock import FileLock
from loguru import logger
from safetensors.torch import load_file
from torch import nn
from torch.multiprocessing.spawn import spawn
from torch.utils.data import Sampler
from transformers import (
    DataCollatorWithPadding,
    EarlyStoppingCallback,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_pt_utils import get_length_grouped_indices

from ml_filter.documents.manifest import digest_of
from ml_filter.documents.writer import file_digest
from ml_filter.errors import ConfigError, InputError
from ml_filter.heads.batching import usual_ids
from ml_filter.heads.checkpoints import (
    CHECKPOINT,
    KeepComplete,
    deterministic,
    history_of,
    is_finished,
    last_complete,
    read_state,
)
from ml_filter.heads.config import FinetuneConfig
from ml_filter.heads.device import choose_device, choose_dtype
from ml_filter.heads.encoder import quiet_transformers
from ml_filter.heads.fitting import validation_figures
from ml_filter.heads.model import HeadModel

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

_LOCK = ".lock"
_START = "start"
_KEPT_IN_HISTORY = ("step", "epoch", "loss", "learning_rate", "grad_norm")


@dataclass(frozen=True)
class _Run:
    """What every process of a training needs."""

    path: Path
    """Directory of tokens and checkpoints."""
    config: FinetuneConfig
    seed: int
    mean_weight: float
    """Mean over the documents of the summed weights of their labels."""
    resume_from: Path | None


def finetune(
    model: HeadModel,
    tokenizer: PreTrainedTokenizerBase,
    train_file: Path,
    validation_file: Path,
    config: FinetuneConfig,
    scratch: Path,
    *,
    seed: int,
) -> list[dict[str, float]]:
    """Train the encoder, or its top layers, together with the head; the model gets the weights of the best checkpoint.

    Fit the head to the frozen encoder first: the large gradients of an untrained head would damage the encoder (Kumar
    et al. 2022). A killed run that is called again with the same arguments resumes from its last complete checkpoint; a
    finished one loads its result. On a CPU, the same seed and number of threads give the same bits, also after a
    resume; on GPUs, as far as their kernels are deterministic.

    Args:
        model: changed in place.
        tokenizer: of the encoder.
        train_file: Parquet with `text`, `labels` (list of float, one per criterion, nan is missing) and `weights` (same
            shape). Tokens are written once and memory-mapped.
        validation_file: same columns; these documents choose the checkpoint.
        config: training settings.
        scratch: directory of tokens and checkpoints, for one run at a time; delete it once the model is saved.
        seed: of the order of documents and of dropout.

    Returns:
        A row for each logged or evaluated step: `step`, `epoch`, and if measured `loss`, `learning_rate` (of the
        encoder), `grad_norm` (before clipping), and `eval_loss` and the `validation_figures` as `eval_<figure>`.

    Raises:
        ConfigError: the encoder has fewer layers than `config.layers`, or no list of them.
        InputError: no evaluation could compute the metric, or the disk is full.
    """
    _choose_trained(model, config)
    device = model.device
    files = [file_digest(train_file), file_digest(validation_file)]
    names = model.config.info.names
    reads = [model.config.max_tokens, model.config.text_prefix]
    run = scratch / f"run-{digest_of([config.model_dump(mode='json'), seed, names, files, reads])[:8]}"
    run.mkdir(parents=True, exist_ok=True)
    mean_weight = _mean_weight(train_file)
    _write_tokens(train_file, run / "train.arrow", tokenizer, model.config.max_tokens)
    _write_tokens(validation_file, run / "validation.arrow", tokenizer, model.config.max_tokens)
    with FileLock(run / _LOCK):
        pass  # wait until the processes of a killed run have ended, which takes seconds
    checkpoint = last_complete(run)
    try:
        if checkpoint is None or not is_finished(read_state(checkpoint)):
            processes = config.processes or max(torch.cuda.device_count(), 1)
            settings = _Run(run, config, seed, mean_weight, checkpoint)
            if processes == 1:
                _train(model, tokenizer, settings)
            else:
                _train_in_processes(processes, model, tokenizer, settings)
            checkpoint = last_complete(run)
        if checkpoint is None:
            raise InputError(f"training left no complete checkpoint in {run}; check that its disk is not full")
        state = read_state(checkpoint)
        if not state.best_global_step:
            raise InputError(
                f"no evaluation could compute {config.metric}: the validation labels or scores do not vary, or the "
                "loss is not finite; provide more documents, lower learning_rate, or set metric: loss"
            )
        best = load_file(run / f"{CHECKPOINT}{state.best_global_step}" / "model.safetensors")
        _ModelWithLoss(model, mean_weight).load_state_dict(best)
    finally:
        model.requires_grad_(False)
        model.eval().to(device)
    logger.info(f"Best step {state.best_global_step} of {state.global_step}: {config.metric} {state.best_metric:.4f}")
    return history_of(state, _KEPT_IN_HISTORY)


def _choose_trained(model: HeadModel, config: FinetuneConfig) -> None:
    model.requires_grad_(False)
    model.head.requires_grad_(True)
    if config.layers is None:
        model.encoder.requires_grad_(True)
        return
    depth = int(model.encoder.config.num_hidden_layers)
    if config.layers > depth:
        raise ConfigError(f"finetune.layers is {config.layers}, but the encoder has only {depth} layers")
    stacks = [part for part in model.encoder.modules() if isinstance(part, nn.ModuleList) and len(part) == depth]
    if not stacks:
        raise ConfigError(
            f"finetune.layers cannot be used: {type(model.encoder).__name__} has no list of its {depth} layers; "
            "remove the setting to train all layers"
        )
    for layer in list(stacks[0])[depth - config.layers :]:
        layer.requires_grad_(True)


def _mean_weight(path: Path) -> float:
    """Mean over the documents of the summed weights of their labels."""
    table = pq.read_table(path, columns=["labels", "weights"])
    labels, weights = (np.array(column.combine_chunks().flatten()) for column in table.columns)
    return float(weights[~np.isnan(labels)].sum(dtype=np.float64)) / len(table)


def _write_tokens(source: Path, target: Path, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> None:
    """Write tokens, labels and weights as an Arrow stream, which `datasets` maps into memory."""
    if target.exists():
        return
    numbers = pa.list_(pa.float32())
    schema = pa.schema({"input_ids": pa.list_(pa.int32()), "labels": numbers, "weights": numbers, "length": pa.int32()})
    partial = target.with_suffix(".tmp")
    with pa.OSFile(str(partial), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        for batch in pq.ParquetFile(source).iter_batches(batch_size=1000, columns=["text", "labels", "weights"]):
            ids = usual_ids(batch["text"].to_pylist(), tokenizer, max_tokens)
            columns = {"input_ids": ids, "labels": batch["labels"], "weights": batch["weights"]}
            writer.write_batch(pa.record_batch(columns | {"length": list(map(len, ids))}, schema=schema))
    os.replace(partial, target)


class _ModelWithLoss(nn.Module):
    """The model and its loss in one forward pass, which Trainer wraps for mixed precision and several GPUs."""

    def __init__(self, model: HeadModel, mean_weight: float) -> None:
        super().__init__()
        self.model, self.mean_weight = model, mean_weight

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        embeddings = self.model.embed(input_ids, attention_mask)
        with torch.autocast(embeddings.device.type, enabled=False):  # the head is float32, as in scoring
            head = self.model.head
            logits = head(embeddings.float())
            loss = head.loss(logits, labels, weights)
            # `loss` divides by the weight of this batch; divide by the mean weight of a batch instead. Otherwise a
            # document's weight would depend on its neighbours, and have no effect in a batch of one.
            batch_weight = weights[~labels.isnan()].sum()
            return {"loss": loss * batch_weight / (len(labels) * self.mean_weight), "scores": head.scores(logits)}


class _ByLength(Sampler[int]):
    """Batches of similar length. The order depends only on seed and epoch, so that a resumed run continues it."""

    def __init__(self, lengths: list[int], batch: int, seed: int) -> None:
        self.lengths, self.batch, self.seed, self.epoch = lengths, batch, seed, 0

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        order = torch.Generator().manual_seed(int(digest_of([self.seed, self.epoch])[:15], 16))
        return iter(get_length_grouped_indices(self.lengths, self.batch, generator=order))


class _Trainer(Trainer):
    """Trainer with the sampler above."""

    sampler: _ByLength

    def _get_train_sampler(self, train_dataset: Any = None) -> _ByLength:
        return self.sampler


class _Checkpointing(KeepComplete):
    """Sets the sampler's epoch, and logs the figures of each evaluation."""

    def __init__(self, sampler: _ByLength) -> None:
        self.sampler = sampler

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # Not by `set_epoch`, which not every wrapped data loader passes on in a resumed epoch.
        self.sampler.epoch = int(state.epoch or 0)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            figures = [f"{name} {kwargs['metrics'][f'eval_{name}']:.4f}" for name in ("loss", "spearman", "macro_f1")]
            logger.info(f"Step {state.global_step:,} of {state.max_steps:,}: validation {', '.join(figures)}")


def _train(model: HeadModel, tokenizer: PreTrainedTokenizerBase, run: _Run) -> None:
    """Train in this process, alone or as one of several; writes checkpoints to the run's directory."""
    from datasets import Dataset

    config = run.config
    train: Dataset = Dataset.from_file(str(run.path / "train.arrow"))
    validation: Dataset = Dataset.from_file(str(run.path / "validation.arrow"))
    longest_first = np.argsort(-validation.data.column("length").to_numpy(), kind="stable")
    args = _arguments(run)
    criteria = model.config.info.criteria
    batch = config.batch_size * config.gradient_accumulation * args.world_size
    sampler = _ByLength(train.data.column("length").to_pylist(), batch, run.seed)
    callbacks: list[TrainerCallback] = [_Checkpointing(sampler)]
    if config.patience is not None:
        callbacks.append(EarlyStoppingCallback(config.patience))
    lock = FileLock(run.path / _LOCK) if args.process_index == 0 else nullcontext()
    with lock, deterministic(), quiet_transformers():
        if config.gradient_checkpointing:
            model.encoder.activation_checkpointing_enable({"use_reentrant": False})
        trainer = _Trainer(
            _ModelWithLoss(model, run.mean_weight),
            args,
            data_collator=DataCollatorWithPadding(tokenizer),
            train_dataset=train,
            eval_dataset=validation.select(longest_first, keep_in_memory=True),
            compute_metrics=lambda evaluation: validation_figures(
                np.asarray(evaluation.predictions), np.asarray(evaluation.label_ids), criteria
            ),
            callbacks=callbacks,
            optimizers=(_optimizer(model, config), None),
        )
        trainer.sampler = sampler
        trainer.remove_callback(PrinterCallback)  # it prints to standard output, which is reserved for results
        trainer.train(resume_from_checkpoint=str(run.resume_from) if run.resume_from else None)
        if config.gradient_checkpointing:
            model.encoder.activation_checkpointing_disable()


def _arguments(run: _Run) -> TrainingArguments:
    config = run.config
    device = choose_device("auto")
    strategy = "epoch" if config.checkpoint_steps is None else "steps"
    return TrainingArguments(
        output_dir=str(run.path),
        seed=run.seed % 2**32,  # the largest seed of numpy
        num_train_epochs=config.epochs,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation,
        lr_scheduler_type=config.schedule,
        warmup_steps=config.warmup_share,
        max_grad_norm=config.max_grad_norm,
        bf16=choose_dtype(config.dtype, device) == torch.bfloat16,
        use_cpu=device.type == "cpu",
        label_names=["labels"],
        eval_strategy=strategy,
        save_strategy=strategy,
        eval_steps=config.checkpoint_steps,
        save_steps=config.checkpoint_steps or 500,
        logging_steps=config.log_steps,
        metric_for_best_model=config.metric,
        greater_is_better=config.metric != "loss",
        load_best_model_at_end=True,
        restore_callback_states_from_checkpoint=True,  # the patience that early stopping has used up
        dataloader_pin_memory=torch.cuda.is_available(),
        report_to="none",
        disable_tqdm=True,
    )


def _optimizer(model: HeadModel, config: FinetuneConfig) -> torch.optim.Optimizer:
    groups = []
    for part, rate in ((model.encoder, config.learning_rate), (model.head, config.head_learning_rate)):
        trained = [parameter for parameter in part.parameters() if parameter.requires_grad]
        # Biases and norms are not decayed, as in Trainer's own optimizer, which has no second learning rate.
        for params, decay in (
            ([parameter for parameter in trained if parameter.ndim > 1], config.weight_decay),
            ([parameter for parameter in trained if parameter.ndim <= 1], 0.0),
        ):
            groups.append({"params": params, "lr": rate, "weight_decay": decay})
    return torch.optim.AdamW(groups)


def _train_in_processes(processes: int, model: HeadModel, tokenizer: PreTrainedTokenizerBase, run: _Run) -> None:
    """Train in several processes on this machine.

    Not by `torch.distributed.launcher.elastic_launch`, which torchrun calls: it starts processes no faster (9.6 against
    9.3 s for two), and it replaces the signal handlers of this process without restoring them.
    """
    with quiet_transformers():
        model.save_pretrained(run.path / _START)
        tokenizer.save_pretrained(run.path / _START)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    # If this process dies, the kernel interrupts the children (see _rank), so that none continues to write checkpoints.
    spawn(_rank, (processes, port, run), nprocs=processes)


def _rank(rank: int, world: int, port: int, run: _Run) -> None:
    from transformers import AutoTokenizer

    # Jobs that a script starts in the background ignore SIGINT, by which torch ends the children of a dead process.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(max(torch.get_num_threads() // world, 1))
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    with quiet_transformers():
        model = HeadModel.from_pretrained(run.path / _START)
        tokenizer = AutoTokenizer.from_pretrained(run.path / _START, config=model.config, trust_remote_code=False)
    _choose_trained(model, run.config)
    _train(model, tokenizer, run)
    torch.distributed.destroy_process_group()
