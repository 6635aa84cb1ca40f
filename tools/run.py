"""Run a pipeline from its YAML file, with overrides from the command line. The body of the `run-*-pipeline` tasks."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

import yaml
from pydantic import BaseModel, ValidationError

from ml_filter import errors
from ml_filter.config import parse_override, problems_in, read_settings, read_yaml, unknown_key, with_overrides
from ml_filter.errors import ConfigError, MlFilterError
from ml_filter.logs import configure_logging
from ml_filter.pipeline.config import (
    AnnotationPipelineConfig,
    EndToEndPipelineConfig,
    ScoringPipelineConfig,
    TrainingPipelineConfig,
    check_criteria,
)
from tools.task import run_task

if TYPE_CHECKING:
    from zenml.models import PipelineRunResponse

Config = TypeVar("Config", bound=BaseModel)

_ROOT = Path(__file__).resolve().parents[1]
_CONFIGS = _ROOT / "configs"
_SUMMARY = ("read", "rejected", "sampled", "documents", "scored", "failed", "kept", "dropped", "spearman", "mae")
"""Counts and figures in the summary at the end."""


@dataclass(frozen=True)
class Pipeline:
    """A pipeline that the tasks can run: its configuration and its help."""

    config: type[BaseModel]
    description: str
    example: str


PIPELINES = {
    "annotation": Pipeline(
        AnnotationPipelineConfig,
        "Sample documents, let an LLM score them against a prompt, aggregate the votes.",
        "run-annotation-pipeline source.paths='[\"crawl/*.warc.gz\"]' sample.size=5000",
    ),
    "training": Pipeline(
        TrainingPipelineConfig,
        "Train a head on labelled documents, evaluate it, register it as a version of the model.",
        "run-training-pipeline labels.paths='[labelled.jsonl]' train.label_column=llama3_70b_score",
    ),
    "scoring": Pipeline(
        ScoringPipelineConfig,
        "Score a corpus with a head, keep the best, write the report.",
        "run-scoring-pipeline head=runs/head-1a2b3c4d source.paths='[\"corpus/*.parquet\"]' filter.min_score=2.5",
    ),
    "end_to_end": Pipeline(
        EndToEndPipelineConfig,
        "Sample and annotate the source, train a head, score the source, keep the best.",
        "run-end-to-end-pipeline sample.size=1000 filter.min_score=2.5",
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a pipeline; returns the exit code: 0 done or submitted, 1 failed, 2 bad input."""
    return run_task(_parser(), _run, arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="poetry poe", description="Run a pipeline of ml_filter.")
    commands = parser.add_subparsers(dest="pipeline", required=True)
    for name, pipeline in PIPELINES.items():
        command = commands.add_parser(
            name,
            prog=f"poetry poe run-{name.replace('_', '-')}-pipeline",
            description=pipeline.description,
            epilog=f"example: poetry poe {pipeline.example}",
        )
        command.add_argument(
            "overrides",
            nargs="*",
            metavar="NAME=VALUE",
            help="override a setting of the file; nested settings with dots, the value as YAML. Sections: "
            + ", ".join(pipeline.config.model_fields),
        )
        command.add_argument("--config", type=Path, metavar="FILE", help=f"default: configs/{name}.yaml")
        command.add_argument("--run-name", metavar="NAME", help="name of the run in the dashboard")
    return parser


def read_config(path: Path, overrides: Sequence[str], config: type[Config]) -> Config:
    """The configuration of a pipeline, from the `parameters` of its file and the overrides NAME=VALUE.

    Raises:
        ConfigError: the file or an override is wrong; names the setting.
    """
    settings = with_overrides(read_settings(path), map(parse_override, overrides))
    try:
        return config.model_validate(settings)
    except ValidationError as error:
        raise ConfigError(f"{path}: {problems_in(error, 'parameters')}") from error


def _run_options(path: Path, config: type[BaseModel]) -> dict[str, Any]:
    """What the file says beside `parameters`, for ZenML, which ignores unknown keys."""
    from zenml.config.pipeline_run_configuration import PipelineRunConfiguration

    content = read_yaml(path)
    for name in content:
        if name in config.model_fields and name not in PipelineRunConfiguration.model_fields:
            raise ConfigError(f"{path}: {name} is a setting of the pipeline; put it under `parameters:`")
        if name not in PipelineRunConfiguration.model_fields:
            raise ConfigError(f"{path}: {unknown_key(name, PipelineRunConfiguration.model_fields)}")
    return {name: value for name, value in content.items() if name != "parameters"}


def _run(arguments: argparse.Namespace) -> None:
    name, path = arguments.pipeline, arguments.config or _CONFIGS / f"{arguments.pipeline}.yaml"
    options = _run_options(path, PIPELINES[name].config)
    config = read_config(path, arguments.overrides, PIPELINES[name].config)
    if isinstance(config, AnnotationPipelineConfig):
        check_criteria(config)
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")  # as in ml_filter.cli
    from zenml.utils.source_utils import set_custom_source_root

    set_custom_source_root(str(_ROOT))
    pipeline = getattr(import_module(f"pipelines.{name}"), f"{name}_pipeline")
    configure_logging(to_standard_logging=True)
    for handler in logging.getLogger().handlers:
        handler.addFilter(without_traceback)
    started = time.monotonic()
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(options, file, sort_keys=False)
        file.flush()
        try:
            run = pipeline.with_options(config_path=file.name, run_name=arguments.run_name)(config)
        except Exception as error:
            reason = _domain_error(error)
            if reason is None:
                raise
            raise reason from None
    if run is not None:
        _finish(run.id, time.monotonic() - started)


def without_traceback(record: logging.LogRecord) -> bool:
    """Log an error of ours in one line, which says what to do, without ZenML's traceback."""
    if record.exc_info and _domain_error(record.exc_info[1]):
        record.exc_info = record.exc_text = None
    return True


def _domain_error(error: BaseException | None) -> MlFilterError | None:
    """The error of ours that ZenML wrapped in its own."""
    while error is not None:
        if isinstance(error, MlFilterError):
            return error
        error = error.__cause__ or error.__context__
    return None


class RunFailed(MlFilterError):
    """A pipeline run failed on its orchestrator."""

    exit_code = 1


def _finish(run_id: UUID, seconds: float) -> None:
    """Print what a run did, or how to watch it if it goes on elsewhere.

    Only a local orchestrator raises the error of a step: on others the status of the run has to be checked.

    Raises:
        RunFailed: the run failed or was stopped; with the exit code of the step's error if that is one of ours.
    """
    from zenml.client import Client
    from zenml.utils.dashboard_utils import get_run_url

    run = Client().get_pipeline_run(run_id)
    if not run.status.is_finished:
        url = get_run_url(run)
        where = f"at {url}" if url else "in the dashboard"
        print(f"{run.name} is {run.status.value}, not finished. Watch it {where}, or")
        print(f"  zenml pipeline runs refresh --include-steps {run.id} && zenml pipeline runs list --id {run.id}")
        return
    _print_summary(run, seconds)
    if run.status.is_successful:
        return
    failed = RunFailed(f"{run.name} ended as {run.status.value}")
    for name, step in run.steps.items():
        if step.status.is_failed:
            cause = step.exception_info  # None if its container was killed
            reason = (cause and cause.message) or "see its log in the dashboard"
            failed = RunFailed(f"step {name} of {run.name} {step.status.value}: {reason}")
            error_type = getattr(errors, str(cause and cause.source).rpartition(".")[2], RunFailed)
            failed.exit_code = getattr(error_type, "exit_code", RunFailed.exit_code)
            break
    raise failed


def _print_summary(run: PipelineRunResponse, seconds: float) -> None:
    """A table with the counts and the path of each step."""
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table

    table = Table("stage", "result", "path", title=f"{run.name}: {run.status.value} in {seconds:,.0f} s", box=None)
    for name, step in run.steps.items():
        metadata: dict[str, Any] = dict(step.run_metadata)
        counts = metadata.get("counts") or {k: round(v, 3) for k, v in metadata.get("figures", {}).items()}
        if counts or "path" in metadata:
            shown = {key.replace("_", " "): value for key, value in counts.items() if key in _SUMMARY and value}
            result = ", ".join(f"{key} {_number(value)}" for key, value in shown.items())
            table.add_row(name, result, str(metadata.get("path", "")))
    console = Console()
    # As wide as its content, so that no path is cut.
    width = Measurement.get(console, console.options.update(max_width=1000), table).maximum
    Console(width=max(console.width, width)).print(table)


def _number(value: float) -> str:
    return f"{int(value):,}" if float(value).is_integer() else f"{value:,}"


if __name__ == "__main__":
    sys.exit(main())
