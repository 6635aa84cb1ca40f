"""Run benchmarks by lm-eval. The figures of a model are a directory, so that a killed run does not repeat them."""

from __future__ import annotations

import glob
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from loguru import logger

from ml_filter.documents.derived import read_rows_of
from ml_filter.documents.manifest import Manifest, Parent
from ml_filter.documents.output_directory import OutputDirectory
from ml_filter.documents.rejects import RejectsLog, describe_counts
from ml_filter.documents.sources import list_shards
from ml_filter.documents.writer import file_digest
from ml_filter.downstream.benchmarks.config import BenchmarkConfig
from ml_filter.downstream.benchmarks.questions import questions_source, read_questions, task_name, task_of
from ml_filter.errors import ConfigError
from ml_filter.extras import require_extra
from ml_filter.heads.device import choose_device

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ROWS = pa.schema([("figure", pa.string()), ("question", pa.int64()), ("value", pa.float64())])
"""Without a question: the figure that lm-eval states."""


@dataclass
class Result:
    """A figure of lm-eval, and its value for each question; empty if the figure is not their mean."""

    value: float
    by_question: dict[int, float] = field(default_factory=dict)


class Benchmarks:
    """The configured benchmarks. They are checked here, before anything is trained or paid for.

    Raises:
        ConfigError: lm-eval is not installed or does not know a task, or two benchmarks have the same name.
        InputError: a table does not exist, or has no question.
    """

    def __init__(self, config: BenchmarkConfig) -> None:
        require_extra("proof", "a benchmark", "lm_eval")
        self.names, self.directory = config.lm_eval_tasks, config.lm_eval_directory
        self.tables: dict[str, str] = {}
        self.warnings: list[str] = []
        self.parents: list[Parent] = []
        for path in config.multiple_choice:
            name = task_name(path)
            if name in self.tables or name in self.names:
                raise ConfigError(f"multiple_choice: another benchmark has the name {name}, too; rename {path}")
            self.tables[name] = path
            self.parents += list_shards(questions_source(path))[1]
            rejects = RejectsLog()
            read_questions(path, rejects)
            if rejects.total:
                self.warnings.append(f"rows of {path} are not used: {describe_counts(rejects.counts)}")
        self._manager = self._open_manager()
        if unknown := sorted(set(self.names) - set(self._manager.all_tasks)):
            names = ", ".join(unknown)
            raise ConfigError(f"lm_eval_tasks: lm-eval has no task {names}; set lm_eval_directory for your own")

    def measure(
        self,
        model: Path,
        weights: Parent,
        output: str,
        *,
        device: str = "auto",
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> Manifest:
        """Write the figures of a model, which `read_results` reads; rows that are not questions are in the rejects.

        Args:
            model: directory of transformers.
            weights: what the figures are of.
            output: `{digest}` stands for a digest of the weights, the tasks and the content of their files.
            tokenizer: ask in its chat template (None: without one).
        """
        settings: dict[str, Any] = {
            "tasks": [*self.names, *self.tables],
            "files": self._files(),
            "lm_eval": version("lm_eval"),
            "chat_template": None if tokenizer is None else tokenizer.chat_template,
        }
        with OutputDirectory(output, "benchmarks", settings, [weights, *self.parents]) as out:
            if out.manifest:
                return out.manifest
            logger.info(f"Running {', '.join(settings['tasks'])} on {weights.path}")
            with out.new_shard("figures", _ROWS) as writer, out.new_rejects("figures") as rejects:
                tables = {name: read_questions(path, rejects) for name, path in self.tables.items()}
                tasks = [*self.names, *(task_of(name, questions) for name, questions in tables.items())]
                results = self._run(language_model_at(model, device, tokenizer), tasks, is_chat=tokenizer is not None)
                for name, result in results.items():
                    questions, values = [None, *result.by_question], [result.value, *result.by_question.values()]
                    columns = {"figure": [name] * len(values), "question": questions, "value": values}
                    writer.write(pa.table(columns, schema=_ROWS))
            return out.finish([("figures", out.commit("figures", writer, rejects, {"figures": len(results)}))])

    def _run(self, model: Any, tasks: list[Any], *, is_chat: bool) -> dict[str, Result]:
        from lm_eval import simple_evaluate

        evaluated = simple_evaluate(
            model=model, tasks=tasks, task_manager=self._manager, bootstrap_iters=0, apply_chat_template=is_chat
        )
        samples = evaluated["samples"]
        return {
            f"{task}/{key.removesuffix(',none')}": Result(value, _by_question(samples.get(task, []), key, value))
            for task, by_metric in evaluated["results"].items()
            for key, value in by_metric.items()
            if isinstance(value, float) and not math.isnan(value) and "_stderr" not in key
        }

    def _open_manager(self) -> Any:
        """The tasks in the directory, and where that is not enough lm-eval's, whose index takes seconds to build."""
        from lm_eval.tasks import TaskManager

        manager = TaskManager(include_path=self.directory, include_defaults=False)
        if set(self.names) <= set(manager.all_tasks):
            return manager
        return TaskManager(include_path=self.directory)

    def _files(self) -> dict[str, str]:
        """The digests of all files in the directory of tasks, and of the data files that its tasks name."""
        if self.directory is None:
            return {}
        root = Path(self.directory).resolve()
        places = [str(root)]
        for entry in self._manager.task_index.values():
            if entry.yaml_path is not None and Path(entry.yaml_path).resolve().is_relative_to(root):
                places += _texts_in([(entry.cfg or {}).get(name) for name in ("dataset_path", "dataset_kwargs")])
        found = {Path(path) for place in places for path in glob.glob(place, recursive=True)}  # noqa: PTH207 - any path
        files = {file for path in found for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file()}
        return {str(file): file_digest(file) for file in sorted(files) if "__pycache__" not in file.parts}


def read_results(manifest: Manifest) -> dict[str, Result]:
    """The figures that `Benchmarks.measure` wrote, by `task/metric`."""
    results: dict[str, Result] = {}
    for row in read_rows_of(manifest):
        if row["question"] is None:
            results[row["figure"]] = Result(row["value"])
        else:
            results[row["figure"]].by_question[row["question"]] = row["value"]
    return results


def language_model_at(model: Path, device: str, tokenizer: PreTrainedTokenizerBase | None = None) -> Any:
    """A model as lm-eval asks it."""
    from lm_eval.models.huggingface import HFLM

    device = str(choose_device(device))
    return HFLM(pretrained=str(model), tokenizer=tokenizer, device=device, dtype="float32", batch_size=8)


def _by_question(samples: list[Mapping[str, Any]], key: str, figure: float) -> dict[int, float]:
    """The values of a figure by question, unless it is more than their mean, such as a correlation."""
    metric, _, name = key.rpartition(",")
    values = {sample["doc_id"]: sample.get(metric) for sample in samples if sample["filter"] == name}
    numbers = {question: float(value) for question, value in values.items() if isinstance(value, int | float)}
    is_mean = len(numbers) == len(values) > 0 and math.isclose(np.mean(list(numbers.values())), figure, abs_tol=1e-9)
    return numbers if is_mean else {}


def _texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _texts_in(list(value.values()))
    elif isinstance(value, list):
        for item in value:
            yield from _texts_in(item)
