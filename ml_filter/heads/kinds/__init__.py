"""The kinds of head, one per file, and the registry that finds the class of a head.

Nothing outside this package switches on the kind: what differs between kinds is a method of `Head` or `Trainer`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ml_filter.criterion import Criterion
from ml_filter.heads.config import EngineConfig, TrainConfig
from ml_filter.heads.info import read_config
from ml_filter.heads.kinds.base import HEADS, Head, ScoredTexts, Trainer, encoder_directory, load_from
from ml_filter.heads.kinds.cascade import CascadeInfo
from ml_filter.heads.kinds.encoder import EncoderTrainer
from ml_filter.heads.kinds.finetuned import FinetunedTrainer
from ml_filter.heads.kinds.hashing import HashingTrainer
from ml_filter.heads.kinds.stack import StackTrainer
from ml_filter.heads.kinds.static import StaticTrainer
from ml_filter.heads.load import resolve_head

__all__ = [
    "HEADS",
    "TRAINERS",
    "Head",
    "ScoredTexts",
    "Trainer",
    "create_trainer",
    "encoder_directory",
    "load_head",
    "read_cascade",
]

TRAINERS: dict[str, type[Trainer]] = {
    "encoder": EncoderTrainer,
    "hashing": HashingTrainer,
    "static": StaticTrainer,
    "stack": StackTrainer,
    "finetuned": FinetunedTrainer,
}


def load_head(name: str | Path, config: EngineConfig) -> Head:
    """Load a head, or a published sequence classifier, to score with.

    Args:
        name: as `resolve_head` takes it.
        config: engine, device and number type.

    Raises:
        InputError: the head does not exist, or is incomplete.
        ConfigError: this machine does not have the device, or the encoder cannot be loaded.
    """
    return load_from(resolve_head(name), config)


def read_cascade(name: str | Path) -> CascadeInfo | None:
    """What a cascade's config.json says about it; None for other heads."""
    cascade = read_config(resolve_head(name)).get("cascade")
    return None if cascade is None else CascadeInfo.model_validate(cascade)


def create_trainer(
    config: TrainConfig, criteria: Sequence[Criterion], cache: Path, scratch: Path | None = None
) -> Trainer:
    """The trainer for a configuration; `Trainer` describes the arguments."""
    name = config.kind if config.finetune is None else "finetuned"
    return TRAINERS[name](config, criteria, cache, scratch)
