"""Train the model of one arm and measure it; a killed training resumes at its last checkpoint.

A checkpoint is one safetensors file with the weights, the state of the optimizers and the losses so far. The batches
follow from the seed and the number of the step, so a resumed training ends with the same model as an uninterrupted one
(on a CPU, to the bit; GPUs add up gradients in any order).
"""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pydantic import BaseModel
from safetensors import safe_open
from safetensors.torch import save_file

from ml_filter.downstream.ablation.dial import Dial
from ml_filter.downstream.ablation.model import build_model, build_optimizers
from ml_filter.downstream.ablation.targets import HIGH, mixed_precision, read_targets, text_bits
from ml_filter.downstream.ablation.tokens import TOKEN
from ml_filter.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tokenizers import Tokenizer
    from torch.optim import Optimizer
    from transformers import LlamaForCausalLM

_DECAY = 0.5
"""Share of the steps, at the end, in which the learning rate decreases linearly to 0."""
_CURVE_POINTS, _CURVE_DOCUMENTS, _CURVE_BYTES = 4, 16, 4096
_PART_TOKENS = 2**14
"""Largest part of a batch in one forward pass; its logits take 2 GB at depth 12."""
_CHECK_STEPS = 10
"""Steps between looks at the loss, each of which waits for a GPU; a model that has diverged stays so."""
_CHECKPOINT = "checkpoint.safetensors"


@dataclass(frozen=True)
class TrainingJob:
    """One model to train.

    Attributes:
        name: of its directories.
        rate: factor on the learning rates.
        tokens: file with the training data, `sequences` * context + 1 tokens.
        scratch: directory of its checkpoint.
        model: directory of the finished model.
        targets: file of each target.
    """

    name: str
    arm: str
    seed: int
    rate: float
    dial: Dial
    vocabulary: int
    sequences: int
    passes: int
    checkpoint_steps: int
    device: str
    tokens: Path
    scratch: Path
    model: Path
    tokenizer: Path
    targets: dict[str, Path] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """Batches in all passes; an incomplete one at the end is left out."""
        return self.sequences * self.passes // self.dial.sequences


class CurvePoint(BaseModel):
    """Bits per byte of some documents of the high target after a number of training tokens."""

    tokens: int
    bits_per_byte: float


class TrainedModel(BaseModel):
    """What became of a job. `cpu_seconds` counts all processes that worked on it, up to their last checkpoints."""

    name: str
    arm: str
    seed: int
    rate: float
    steps: int
    final_loss: float
    cpu_seconds: float
    curve: list[CurvePoint]
    bits: dict[str, list[float]]
    """By target: the bits of each document."""


def train_model(job: TrainingJob, advance: Callable[[int], None] = lambda steps: None) -> TrainedModel:
    """Train or resume, save the model where lm-eval can load it, and measure it on the targets.

    Raises:
        ConfigError: the model has diverged.
    """
    from tokenizers import Tokenizer

    started = time.process_time()
    device = torch.device(job.device)
    tokenizer = Tokenizer.from_file(str(job.tokenizer))
    model = build_model(job.dial, job.vocabulary, job.seed)
    model.to(device)  # type: ignore[arg-type]
    state = _State(model, build_optimizers(model, job.dial, job.rate), torch.zeros(job.steps, device=device))
    state.load(job.scratch / _CHECKPOINT)
    advance(state.step)
    data = np.memmap(job.tokens, TOKEN, "r")
    while state.step < job.steps:
        _train_step(job, state, data, device)
        if state.step % _CHECK_STEPS == 0 or state.step == job.steps:
            _require_finite(job, state.step, [float(state.losses[state.step - 1])])
        if state.step in _curve_steps(job.steps):
            _add_to_curve(job, state, tokenizer)
        if state.step % job.checkpoint_steps == 0 or state.step == job.steps:
            state.save(job.scratch / _CHECKPOINT, started)
        advance(1)
    model.eval()
    bits = {
        name: list(text_bits(model, tokenizer, read_targets(path), job.dial.context))
        for name, path in job.targets.items()
    }
    _require_finite(job, state.step, [*(bpb for _, bpb in state.curve), *chain.from_iterable(bits.values())])
    _save_model(model, job)
    return TrainedModel(
        name=job.name,
        arm=job.arm,
        seed=job.seed,
        rate=job.rate,
        steps=job.steps,
        final_loss=float(state.losses[-100:].mean()),
        cpu_seconds=state.seconds + time.process_time() - started,
        curve=[CurvePoint(tokens=int(tokens), bits_per_byte=bpb) for tokens, bpb in state.curve],
        bits=bits,
    )


def _require_finite(job: TrainingJob, step: int, values: Iterable[float]) -> None:
    if not all(map(math.isfinite, values)):
        raise ConfigError(
            f"the model {job.name} has diverged, by step {step:,} of {job.steps:,}: its loss is not finite with "
            f"{job.rate:g} times the learning rates; use smaller factors (training.learning_rates)"
        )


# --- One step --------------------------------------------------------------------------------------------------------


def _train_step(job: TrainingJob, state: _State, data: NDArray[np.uint16], device: torch.device) -> None:
    batch = _batch(job, state.step, data).to(device)
    factor = min(1.0, (job.steps - state.step) / (_DECAY * job.steps))
    state.model.train()
    for part in batch.split(max(1, _PART_TOKENS // job.dial.context)):
        with mixed_precision(device):
            logits = state.model(input_ids=part[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), part[:, 1:].flatten())
        loss = loss * (len(part) / len(batch))
        loss.backward()
        state.losses[state.step] += loss.detach()
    for optimizer, rates in zip(state.optimizers, state.rates, strict=True):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor
        optimizer.step()
        optimizer.zero_grad()
    state.step += 1


def _batch(job: TrainingJob, step: int, data: NDArray[np.uint16]) -> torch.Tensor:
    """The tokens of a step [sequences, context + 1]. Each pass has another order, the same in every arm."""
    positions = range(step * job.dial.sequences, (step + 1) * job.dial.sequences)
    context, rows = job.dial.context, []
    for position in positions:
        start = int(_order(job.seed, position // job.sequences, job.sequences)[position % job.sequences]) * context
        rows.append(data[start : start + context + 1].astype(np.int64))
    return torch.from_numpy(np.stack(rows))


_ORDERS: dict[tuple[int, int, int], NDArray[np.int64]] = {}


def _order(seed: int, number: int, sequences: int) -> NDArray[np.int64]:
    """The order of the sequences in a pass. Only the last two passes are kept: a batch may reach over both."""
    key = (seed, number, sequences)
    if key not in _ORDERS:
        while len(_ORDERS) > 1:
            del _ORDERS[next(iter(_ORDERS))]
        _ORDERS[key] = np.random.default_rng([seed, number]).permutation(sequences)
    return _ORDERS[key]


def _curve_steps(steps: int) -> set[int]:
    return {max(1, round(steps * point / _CURVE_POINTS)) for point in range(1, _CURVE_POINTS + 1)}


def _add_to_curve(job: TrainingJob, state: _State, tokenizer: Tokenizer) -> None:
    texts = [text for text, _ in zip(read_targets(job.targets[HIGH]), range(_CURVE_DOCUMENTS), strict=False)]
    texts = [text.beginning(_CURVE_BYTES) for text in texts]
    state.model.eval()
    bits = sum(text_bits(state.model, tokenizer, iter(texts), job.dial.context))
    tokens = state.step * job.dial.sequences * job.dial.context
    state.curve.append((tokens, bits / sum(text.bytes for text in texts)))


# --- Checkpoints -----------------------------------------------------------------------------------------------------


@dataclass
class _State:
    """A model in training. `seconds` is the processor time of earlier processes."""

    model: LlamaForCausalLM
    optimizers: list[Optimizer]
    losses: torch.Tensor
    step: int = 0
    seconds: float = 0.0
    curve: list[tuple[int, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in self.optimizers]

    def save(self, path: Path, started: float) -> None:
        """Replace the checkpoint in the file completely or not at all."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        for number, optimizer in enumerate(self.optimizers):
            for index, values in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer.{number}.{index}.{name}": tensor for name, tensor in values.items()}
        tensors["losses"] = self.losses
        tensors["curve"] = torch.tensor(self.curve, dtype=torch.float64).reshape(-1, 2)
        tensors["seconds"] = torch.tensor(self.seconds + time.process_time() - started, dtype=torch.float64)
        tensors["step"] = torch.tensor(self.step)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")  # a killed run's worker may take a moment to end
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)
        os.replace(temporary, path)

    def load(self, path: Path) -> None:
        """Restore the checkpoint in the file, if it exists."""
        if not path.exists():
            return
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is not a mapping
        self.model.load_state_dict(_below(tensors, "model."))
        for number, optimizer in enumerate(self.optimizers):
            by_index: dict[int, dict[str, Any]] = {}
            for name, tensor in _below(tensors, f"optimizer.{number}.").items():
                index, _, key = name.partition(".")
                by_index.setdefault(int(index), {})[key] = tensor
            optimizer.load_state_dict({**optimizer.state_dict(), "state": by_index})
        self.losses = tensors["losses"].to(self.losses.device)
        self.curve = [(int(tokens), bpb) for tokens, bpb in tensors["curve"].tolist()]
        self.seconds, self.step = float(tensors["seconds"]), int(tensors["step"])


def _below(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _save_model(model: LlamaForCausalLM, job: TrainingJob) -> None:
    """Save model and tokenizer as transformers and lm-eval read them, completely or not at all."""
    from transformers import PreTrainedTokenizerFast

    from ml_filter.downstream.ablation.tokens import END

    temporary = job.scratch / f"model-{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save_file(model.state_dict(), temporary / "model.safetensors", {"format": "pt"})
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(temporary)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(job.tokenizer), bos_token=END, eos_token=END, model_max_length=job.dial.context
    )
    tokenizer.save_pretrained(temporary)
    shutil.rmtree(job.model, ignore_errors=True)
    job.model.parent.mkdir(parents=True, exist_ok=True)
    os.replace(temporary, job.model)
