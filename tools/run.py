"""Run a pipeline: its YAML, with values from the command line in their places. The body of the poe tasks."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import ValidationError

from ml_filter.config import problems_in, read_yaml
from ml_filter.errors import ConfigError, MlFilterError
from ml_filter.logs import configure_logging
from ml_filter.pipeline.config import (
    AnnotationPipelineConfig,
    EndToEndPipelineConfig,
    ScoringPipelineConfig,
    TrainingPipelineConfig,
)
from tools.task import run_task

if TYPE_CHECKING:
    from pydantic import BaseModel
    from zenml.models import PipelineRunResponse

_ROOT = Path(__file__).resolve().parents[1]
_CONFIGS = _ROOT / "configs"
_SHOWN = ("read", "rejected", "sampled", "documents", "scored", "failed", "kept", "dropped", "spearman", "mae")
"""Counts and figures of the summary at the end."""


@dataclass(frozen=True)
class _Pipeline:
    config: type[BaseModel]
    what: str
    example: str


PIPELINES = {
    "annotation": _Pipeline(
        AnnotationPipelineConfig,
        "Sample documents, let an LLM score them against a prompt, aggregate the votes.",
        "run-annotation-pipeline source.paths='[\"crawl/*.warc.gz\"]' sample.size=5000",
    ),
    "training": _Pipeline(
        TrainingPipelineConfig,
        "Fit a head on labelled documents, evaluate it, register it as a version of the model.",
        "run-training-pipeline labels.paths='[labelled.jsonl]' train.label_column=llama3_70b_score",
    ),
    "scoring": _Pipeline(
        ScoringPipelineConfig,
        "Score a corpus with a head, keep the best, write the report.",
        "run-scoring-pipeline head=runs/head-1a2b3c4d source.paths='[\"corpus/*.parquet\"]' filter.min_score=2.5",
    ),
    "end_to_end": _Pipeline(
        EndToEndPipelineConfig,
        "The whole way: sample and annotate the source, train a head, score the source, keep the best.",
        "run-end-to-end-pipeline sample.size=1000 filter.min_score=2.5",
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one pipeline; returns the exit code: 0 done, 1 failures above the tolerated share, 2 bad input."""
    return run_task(_parser(), _run, arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="poetry poe", description="Run a pipeline of ml_filter.")
    commands = parser.add_subparsers(dest="pipeline", required=True)
    for name, known in PIPELINES.items():
        sections = ", ".join(known.config.model_fields)
        command = commands.add_parser(
            name,
            prog=f"poetry poe run-{name.replace('_', '-')}-pipeline",
            description=known.what,
            epilog=f"example: poetry poe {known.example}",
        )
        command.add_argument(
            "values", nargs="*", metavar="NAME=VALUE", help=f"a setting of the YAML, its value as YAML; of: {sections}"
        )
        command.add_argument("--config", type=Path, metavar="FILE", help=f"default: configs/{name}.yaml")
        command.add_argument("--run-name", metavar="NAME", help="name of the run in the dashboard")
    return parser


def merged_config(path: Path, values: Sequence[str], config: type[BaseModel]) -> dict[str, Any]:
    """A run configuration with the values of the command line in their places, checked.

    Raises:
        ConfigError: the file or a value is wrong; says which setting.
    """
    content = read_yaml(path)
    _check_keys(path, content, config)
    parameters: dict[str, Any] = content.setdefault("parameters", {})
    for value in values:
        name, equals, text = value.partition("=")
        if not equals:
            raise ConfigError(f"{value!r} is not of the form NAME=VALUE, as in sample.size=500")
        *sections, last = name.split(".")
        place = parameters
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise ConfigError(f"{name}: {section} is a value and has no settings of its own")
        try:
            place[last] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"{name}: {text!r} is not YAML: {error}") from error
    try:
        checked = config.model_validate(parameters)
    except ValidationError as error:
        raise ConfigError(f"{path}: {problems_in(error, 'parameters')}") from error
    content["parameters"] = checked.model_dump(mode="json")
    return content


def _check_keys(path: Path, content: dict[str, Any], config: type[BaseModel]) -> None:
    """Refuse what stands beside `parameters` and nothing reads: ZenML passes over it without a word."""
    from zenml.config.pipeline_run_configuration import PipelineRunConfiguration

    known = list(PipelineRunConfiguration.model_fields)
    for name in content:
        if name in known:
            continue
        if name in config.model_fields:
            raise ConfigError(f"{path}: {name} is a parameter of the pipeline: put it under `parameters:`")
        near = get_close_matches(str(name), [*known, *config.model_fields], n=1)
        meant = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known)}"
        raise ConfigError(f"{path}: nothing reads {name}{meant}")


def _run(given: argparse.Namespace) -> None:
    name = given.pipeline
    content = merged_config(given.config or _CONFIGS / f"{name}.yaml", given.values, PIPELINES[name].config)
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")  # as in ml_filter.cli
    from importlib import import_module

    from zenml.utils.source_utils import set_custom_source_root

    set_custom_source_root(str(_ROOT))
    pipeline = getattr(import_module(f"pipelines.{name}"), f"{name}_pipeline")
    configure_logging(to_standard_logging=True)
    started = time.monotonic()
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", delete=False) as file:
        yaml.safe_dump(content, file, sort_keys=False)
    try:
        run = pipeline.with_options(config_path=file.name, run_name=given.run_name)()
    except Exception as error:
        reason = _domain_error(error)
        if reason is None:
            raise
        raise reason from None
    finally:
        Path(file.name).unlink()
    if run is not None:
        _summary(run, time.monotonic() - started)


def _domain_error(error: BaseException | None) -> MlFilterError | None:
    while error is not None:
        if isinstance(error, MlFilterError):
            return error
        error = error.__cause__ or error.__context__
    return None


def _summary(run: PipelineRunResponse, seconds: float) -> None:
    """The short table at the end: what each step counted and where its files are."""
    from rich.console import Console
    from rich.table import Table
    from zenml.client import Client

    run = Client().get_pipeline_run(run.id)
    table = Table("stage", "result", "where", title=f"{run.name}: {run.status.value} in {seconds:,.0f} s", box=None)
    for name, step in run.steps.items():
        metadata: dict[str, Any] = dict(step.run_metadata)
        counts = metadata.get("counts") or {k: round(v, 3) for k, v in metadata.get("figures", {}).items()}
        if not (counts or "path" in metadata):
            continue
        shown = {key.replace("_", " "): value for key, value in counts.items() if key in _SHOWN and value}
        result = ", ".join(f"{key} {_number(value)}" for key, value in shown.items())
        table.add_row(name, result, str(metadata.get("path", "")))
    console = Console(width=max(Console().width, 150))
    console.print(table)


def _number(value: float) -> str:
    return f"{int(value):,}" if float(value).is_integer() else f"{value:,}"


if __name__ == "__main__":
    sys.exit(main())
