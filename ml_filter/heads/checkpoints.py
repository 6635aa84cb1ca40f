"""Checkpoints of transformers' Trainer that are used only if they are complete, and deterministic training.

A checkpoint is complete when `complete.json`, which is written last, has the digest of each of its files. A killed run
leaves at most one incomplete checkpoint; the next run deletes it and resumes from the one before. Trainer reads the
state of its optimizer and random generators with `weights_only`, which runs no code.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from loguru import logger
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ml_filter.documents.writer import file_digest

CHECKPOINT = "checkpoint-"
_COMPLETE = "complete.json"


class KeepComplete(TrainerCallback):
    """Marks complete checkpoints, and deletes all but the newest and the best.

    Trainer's `save_total_limit` would delete old checkpoints before the new one is known to be complete.
    """

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Log the figures of a step that is saved."""
        control.should_log |= control.should_save  # so that the history of a resumed run has no gap

    on_epoch_end = on_step_end

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Mark what is complete, delete what is not needed."""
        if torch.distributed.is_initialized():
            torch.distributed.barrier()  # until every process has written its random state
        if not state.is_world_process_zero:
            return
        run = Path(cast(str, args.output_dir))
        _mark_complete(run / f"{CHECKPOINT}{state.global_step}")
        for step, checkpoint in _checkpoints(run):
            if step not in (state.global_step, state.best_global_step):
                shutil.rmtree(checkpoint)


def last_complete(run: Path) -> Path | None:
    """The newest complete checkpoint whose best checkpoint is complete too; newer ones are deleted."""
    for _, checkpoint in _checkpoints(run):
        if _is_complete(checkpoint):
            best = read_state(checkpoint).best_global_step
            if not best or _is_complete(run / f"{CHECKPOINT}{best}"):
                return checkpoint
        logger.warning(f"{checkpoint} is incomplete, after a kill or on a full disk; resuming from an earlier one")
        shutil.rmtree(checkpoint)
    return None


def read_state(checkpoint: Path) -> TrainerState:
    """The state of the training at a checkpoint."""
    return cast(TrainerState, TrainerState.load_from_json(str(checkpoint / "trainer_state.json")))


def is_finished(state: TrainerState) -> bool:
    """Whether training ended at this checkpoint: at the last step, or by early stopping."""
    control = cast(dict[str, Any], state.stateful_callbacks or {}).get("TrainerControl", {})
    return bool(control.get("args", {}).get("should_training_stop"))


def history_of(state: TrainerState, names: Collection[str]) -> list[dict[str, float]]:
    """A row for each logged or evaluated step, with these figures and those of evaluations (`eval_...`)."""
    rows: dict[int, dict[str, float]] = {}
    for entry in state.log_history:
        kept = {name: value for name, value in entry.items() if name in names or name.startswith("eval_")}
        kept = {name: value for name, value in kept.items() if not name.endswith(("_runtime", "_per_second"))}
        rows.setdefault(int(entry["step"]), {}).update(kept)
    return list(rows.values())


@contextmanager
def deterministic() -> Iterator[None]:
    """Use deterministic kernels, with a warning if a GPU has none.

    Trainer's `full_determinism` would raise instead of warning, and launch kernels one at a time.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)


def _checkpoints(run: Path) -> list[tuple[int, Path]]:
    """Steps and directories of checkpoints, newest first."""
    paths = run.glob(f"{CHECKPOINT}*")
    return sorted(((int(path.name.removeprefix(CHECKPOINT)), path) for path in paths), reverse=True)


def _mark_complete(checkpoint: Path) -> None:
    digests = {path.name: file_digest(path) for path in sorted(checkpoint.iterdir())}
    partial = checkpoint / f".{_COMPLETE}"
    partial.write_text(json.dumps(digests))
    os.replace(partial, checkpoint / _COMPLETE)


def _is_complete(checkpoint: Path) -> bool:
    """Whether every file is as it was when the checkpoint was marked complete."""
    try:
        digests = json.loads((checkpoint / _COMPLETE).read_text())
        return all(file_digest(checkpoint / name) == digest for name, digest in digests.items())
    except (OSError, ValueError):
        return False
