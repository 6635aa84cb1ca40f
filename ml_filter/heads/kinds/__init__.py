"""The kinds of head, one per file.

Nothing outside this package switches on the kind: what differs between kinds is a method of `Head` or `Trainer`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from ml_filter.criterion import Criterion
from ml_filter.heads.config import TrainConfig
from ml_filter.heads.kinds.base import Head, Trainer, class_of, encoder_directory, head_class, load_head
from ml_filter.heads.kinds.cascade import cascade_of

__all__ = ["Head", "Trainer", "cascade_of", "create_trainer", "encoder_directory", "head_class", "load_head"]


def create_trainer(
    config: TrainConfig, criteria: Sequence[Criterion], cache: Path, scratch: Path | None = None
) -> Trainer:
    """The trainer for a configuration; `Trainer` describes the arguments."""
    trainer = class_of("finetuned" if config.finetune else config.kind, "Trainer")
    return cast(Trainer, trainer(config, criteria, cache, scratch))
