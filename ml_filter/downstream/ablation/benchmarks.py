"""lm-eval on the models of an ablation: tasks, and the same bits per byte by an independent path."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from ml_filter.documents.derived import read_rows_of
from ml_filter.documents.manifest import Manifest, Parent
from ml_filter.documents.output_directory import OutputDirectory
from ml_filter.downstream.ablation.config import AblateConfig
from ml_filter.downstream.ablation.result import model_path
from ml_filter.downstream.ablation.targets import TargetText
from ml_filter.downstream.benchmarks import language_model_at, task_figures

_FIGURES = pa.schema([("model", pa.string()), ("figure", pa.string()), ("value", pa.float64())])


def run_tasks(arms: Manifest, models: Sequence[str], config: AblateConfig, output: str) -> Manifest:
    """Run lm-eval's tasks on the models of an ablation; each finished model is a shard with its figures."""
    settings = {"tasks": config.lm_eval_tasks, "directory": config.lm_eval_directory}
    with OutputDirectory(output, "ablation-tasks", settings, [Parent(path=arms.root, digest=arms.digest)]) as out:
        if out.manifest:
            return out.manifest
        results = out.finished_shards(models)
        for model in models:
            if model in results:
                continue
            directory = Path(arms.path_of(model_path(model)))
            figures = task_figures(directory, config.lm_eval_tasks, config.lm_eval_directory, config.training.device)
            with out.new_shard(model, _FIGURES) as writer, out.new_rejects(model) as rejects:
                rows = [{"model": model, "figure": name, "value": value} for name, value in figures.items()]
                writer.write(pa.Table.from_pylist(rows, schema=_FIGURES))
            results[model] = out.commit(model, writer, rejects, {"figures": writer.rows})
        return out.finish([(model, results[model]) for model in models])


def figures_by_model(tasks: Manifest) -> dict[str, dict[str, float]]:
    """What `run_tasks` found."""
    figures: dict[str, dict[str, float]] = {}
    for row in read_rows_of(tasks):
        figures.setdefault(row["model"], {})[row["figure"]] = row["value"]
    return figures


def rolling_bits_per_byte(model: Path, texts: Sequence[TargetText]) -> float:
    """Bits per byte of texts by lm-eval's `loglikelihood_rolling`, for a check of `text_bits`."""
    from lm_eval.api.instance import Instance

    requests = [Instance("loglikelihood_rolling", {}, (text.text,), number) for number, text in enumerate(texts)]
    likelihoods = language_model_at(model, "cpu").loglikelihood_rolling(requests, disable_tqdm=True)
    return float(-sum(likelihoods) / math.log(2) / sum(text.bytes for text in texts))
