"""lm-eval on the models of an ablation: tasks by name, and the same bits per byte by an independent path."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_filter.downstream.ablation.config import AblateConfig
from ml_filter.downstream.ablation.targets import TargetText
from ml_filter.errors import ConfigError
from ml_filter.location import write_atomically

_TASKS = "tasks.json"


def require_lm_eval() -> None:
    """Check that lm-eval is installed.

    Raises:
        ConfigError: it is not.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise ConfigError("lm_eval_tasks needs the extra proof: run make setup EXTRAS=proof")


def run_tasks(model: Path, config: AblateConfig) -> dict[str, float]:
    """The figures of lm-eval's tasks on a model, as `task/metric`; those in its directory if they were computed.

    Raises:
        ConfigError: lm-eval does not know a task.
    """
    if not config.lm_eval_tasks:
        return {}
    path = model / _TASKS
    if not path.exists():
        from lm_eval import simple_evaluate
        from lm_eval.tasks import TaskManager

        manager = TaskManager(include_path=config.lm_eval_directory)
        if unknown := sorted(set(config.lm_eval_tasks) - set(manager.all_tasks)):
            names = ", ".join(unknown)
            raise ConfigError(f"lm_eval_tasks: lm-eval has no task {names}; set lm_eval_directory for your own")
        results = simple_evaluate(
            model=_language_model(model), tasks=config.lm_eval_tasks, task_manager=manager, log_samples=False
        )
        figures = {
            f"{task}/{metric.removesuffix(',none')}": float(value)
            for task, by_metric in results["results"].items()
            for metric, value in by_metric.items()
            if isinstance(value, float) and not math.isnan(value)
        }
        write_atomically(path, json.dumps(figures).encode())
    return dict(json.loads(path.read_bytes()))


def rolling_bits_per_byte(model: Path, texts: Sequence[TargetText]) -> float:
    """Bits per byte of texts by lm-eval's `loglikelihood_rolling`, for a check of `text_bits`."""
    from lm_eval.api.instance import Instance

    requests = [Instance("loglikelihood_rolling", {}, (text.text,), number) for number, text in enumerate(texts)]
    likelihoods = _language_model(model).loglikelihood_rolling(requests, disable_tqdm=True)
    return float(-sum(likelihoods) / math.log(2) / sum(text.bytes for text in texts))


def _language_model(model: Path) -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(model), device="cpu", dtype="float32", batch_size=8)
