"""Tasks of lm-eval by name, on models of transformers."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from ml_filter.errors import ConfigError
from ml_filter.heads.device import choose_device


def require_lm_eval() -> None:
    """Check that lm-eval is installed.

    Raises:
        ConfigError: it is not.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise ConfigError("lm_eval_tasks needs the extra proof: run make setup EXTRAS=proof")


def check_tasks(tasks: Sequence[str], directory: str | None) -> None:
    """Check that lm-eval knows the tasks, before anything is trained or paid for.

    Raises:
        ConfigError: lm-eval is not installed, or does not know a task.
    """
    require_lm_eval()
    manager = _task_manager(directory, tuple(tasks))
    if unknown := sorted(set(tasks) - set(manager.all_tasks)):
        names = ", ".join(unknown)
        raise ConfigError(f"lm_eval_tasks: lm-eval has no task {names}; set lm_eval_directory for your own")


def task_figures(
    model: Path, tasks: Sequence[str], directory: str | None = None, device: str = "auto", *, is_chat: bool = False
) -> dict[str, float]:
    """The figures of lm-eval's tasks on a model of transformers, as `task/metric`.

    Args:
        directory: with further tasks, as lm-eval's `include_path`.
        is_chat: ask in the model's chat template.

    Raises:
        ConfigError: lm-eval is not installed, or does not know a task.
    """
    check_tasks(tasks, directory)
    from lm_eval import simple_evaluate

    manager = _task_manager(directory, tuple(tasks))
    language_model = language_model_at(model, device)
    results = simple_evaluate(
        model=language_model, tasks=list(tasks), task_manager=manager, log_samples=False, apply_chat_template=is_chat
    )
    return {
        f"{task}/{metric.removesuffix(',none')}": float(value)
        for task, by_metric in results["results"].items()
        for metric, value in by_metric.items()
        if isinstance(value, float) and not math.isnan(value) and "_stderr" not in metric
    }


@cache
def _task_manager(directory: str | None, tasks: tuple[str, ...]) -> Any:
    """The tasks in the directory, and where that is not enough lm-eval's own, whose index takes seconds to build."""
    from lm_eval.tasks import TaskManager

    if directory is not None:
        manager = TaskManager(include_path=directory, include_defaults=False)
        if set(tasks) <= set(manager.all_tasks):
            return manager
    return TaskManager(include_path=directory)


def language_model_at(model: Path, device: str) -> Any:
    """A model as lm-eval asks it."""
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(model), device=str(choose_device(device)), dtype="float32", batch_size=8)
