"""The kinds of head, one per file.

Nothing outside this package switches on the kind: what differs between kinds is a method of `Head` or `Trainer`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ml_filter.criterion import Criterion
from ml_filter.heads.config import TrainConfig
from ml_filter.heads.kinds.base import HEADS, Head, Trainer, encoder_directory, load_head
from ml_filter.heads.kinds.cascade import cascade_of
from ml_filter.heads.kinds.encoder import EncoderTrainer
from ml_filter.heads.kinds.finetuned import FinetunedTrainer
from ml_filter.heads.kinds.hashing import HashingTrainer
from ml_filter.heads.kinds.stack import StackTrainer
from ml_filter.heads.kinds.static import StaticTrainer

__all__ = ["HEADS", "Head", "Trainer", "cascade_of", "create_trainer", "encoder_directory", "load_head"]

_TRAINERS: dict[str, type[Trainer]] = {
    "encoder": EncoderTrainer,
    "hashing": HashingTrainer,
    "static": StaticTrainer,
    "stack": StackTrainer,
    "finetuned": FinetunedTrainer,
}


def create_trainer(
    config: TrainConfig, criteria: Sequence[Criterion], cache: Path, scratch: Path | None = None
) -> Trainer:
    """The trainer for a configuration; `Trainer` describes the arguments."""
    return _TRAINERS["finetuned" if config.finetune else config.kind](config, criteria, cache, scratch)
