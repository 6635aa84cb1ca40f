"""lm-eval on the models of an ablation: tasks, and the same bits per byte by an independent path."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

from ml_filter.downstream.ablation.config import AblateConfig
from ml_filter.downstream.ablation.targets import TargetText
from ml_filter.downstream.benchmarks import language_model_at, task_figures
from ml_filter.location import write_atomically

_TASKS = "tasks.json"


def run_tasks(model: Path, config: AblateConfig) -> dict[str, float]:
    """The figures of lm-eval's tasks on a model of the ablation; those in its directory if they were computed."""
    if not config.lm_eval_tasks:
        return {}
    path = model / _TASKS
    if not path.exists():
        figures = task_figures(model, config.lm_eval_tasks, config.lm_eval_directory, config.training.device)
        write_atomically(path, json.dumps(figures).encode())
    return dict(json.loads(path.read_bytes()))


def rolling_bits_per_byte(model: Path, texts: Sequence[TargetText]) -> float:
    """Bits per byte of texts by lm-eval's `loglikelihood_rolling`, for a check of `text_bits`."""
    from lm_eval.api.instance import Instance

    requests = [Instance("loglikelihood_rolling", {}, (text.text,), number) for number, text in enumerate(texts)]
    likelihoods = language_model_at(model, "cpu").loglikelihood_rolling(requests, disable_tqdm=True)
    return float(-sum(likelihoods) / math.log(2) / sum(text.bytes for text in texts))
