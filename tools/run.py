"""Run a pipeline from its YAML file, with overrides from the command line. The body of the `run-*-pipeline` tasks."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from ml_filter.config import override_about, parse_override, problem_text, read_settings, with_overrides
from ml_filter.errors import ConfigError
from ml_filter.logs import configure_logging
from ml_filter.pipeline.ablation import AblationPipelineConfig
from ml_filter.pipeline.config import (
    AnnotationPipelineConfig,
    ContinuousTrainingPipelineConfig,
    EndToEndPipelineConfig,
    ScoringPipelineConfig,
    TrainingPipelineConfig,
    check_criteria,
)
from ml_filter.pipeline.fetch import FetchPipelineConfig
from ml_filter.pipeline.instruct import InstructPipelineConfig
from ml_filter.pipeline.judging import JudgingPipelineConfig
from ml_filter.pipeline.proof import ProofPipelineConfig
from ml_filter.pipeline.retrieval import RetrievalPipelineConfig
from ml_filter.pipeline.tuning import TuningPipelineConfig
from tools.outcome import run_and_report, without_traceback
from tools.run_options import for_active_stack, merged, on_stack, read_run_options
from tools.task import run_task

if TYPE_CHECKING:
    from zenml.pipelines.pipeline_definition import Pipeline as ZenMLPipeline

Config = TypeVar("Config", bound=BaseModel)

_ROOT = Path(__file__).resolve().parents[1]
_CONFIGS = _ROOT / "configs"


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
    "continuous_training": Pipeline(
        ContinuousTrainingPipelineConfig,
        "Annotate a sample of what the source has gained, train on all labels so far, promote a better head.",
        "run-continuous-training-pipeline source.paths='[\"crawl/*.warc.gz\"]' sample.size=1000",
    ),
    "fetch": Pipeline(
        FetchPipelineConfig,
        "Fetch web pages, feeds, sitemaps, arXiv papers and GitHub repositories, as far as they are new or changed.",
        "run-fetch-pipeline fetch.feeds='[\"https://example.org/feed.xml\"]' fetch.contact=me@example.org",
    ),
    "ablation": Pipeline(
        AblationPipelineConfig,
        "Train models on what a filter keeps, on what it drops and on random documents, and compare them.",
        "run-ablation-pipeline filtered=runs/filtered-1a2b3c4d ablate.gold.paths='[gold.jsonl]'",
    ),
    "instruct": Pipeline(
        InstructPipelineConfig,
        "Let an LLM write instructions with answers from documents; check, evolve, rate and publish them.",
        "run-instruct-pipeline source.paths='[runs/filtered-1a2b3c4d]' instruct.write.model=NAME",
    ),
    "retrieval": Pipeline(
        RetrievalPipelineConfig,
        "Index documents for retrieval, and compare ways to search them on questions.",
        "run-retrieval-pipeline source.paths='[\"runs/filtered-1a2b3c4d\"]' generate=200",
    ),
    "judging": Pipeline(
        JudgingPipelineConfig,
        "Let a tuned model and its base answer held-out tasks, and compare the answers.",
        "run-judging-pipeline tuned=runs/tuned-1a2b3c4d judge.size=100",
    ),
    "tuning": Pipeline(
        TuningPipelineConfig,
        "Tune a language model on instruction data, register it as a version of the model.",
        "run-tuning-pipeline data.paths='[runs/instruct/data-1a2b3c4d]' tune.weights=qlora",
    ),
    "proof": Pipeline(
        ProofPipelineConfig,
        "Filter a corpus, show whether the filter helps, make instructions of it, tune a model on them, evaluate it.",
        "run-proof-pipeline sample.size=1000 instruct.write.model=NAME",
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
        add_settings(command, name)
        command.add_argument("--run-name", metavar="NAME", help="name of the run, to which date and time are added")
    return parser


def add_settings(command: argparse.ArgumentParser, name: str) -> None:
    """The arguments that configure a pipeline."""
    command.add_argument(
        "overrides",
        nargs="*",
        metavar="NAME=VALUE",
        help="override a setting of the file; nested settings with dots, the value as YAML. Sections: "
        + ", ".join(PIPELINES[name].config.model_fields),
    )
    command.add_argument("--config", metavar="FILE", help=f"default: configs/{name}.yaml")
    command.add_argument(
        "--stack",
        metavar="NAME",
        help="run on this stack, with configs/stacks/NAME.yaml over the file (default: the active stack)",
    )


def read_config(path: str | Path, overrides: Sequence[str], config: type[Config]) -> Config:
    """The configuration of a pipeline, from the `parameters` of its file and the overrides NAME=VALUE.

    Raises:
        ConfigError: the file or an override is wrong; names the setting.
    """
    return validated(read_settings(path), overrides, config, str(path))


def validated(settings: Mapping[str, Any], overrides: Sequence[str], config: type[Config], origin: str) -> Config:
    """The configuration of a pipeline from its settings and the overrides NAME=VALUE.

    Raises:
        ConfigError: a setting or an override is wrong; names it and the origin of the settings.
    """
    parsed = [parse_override(text) for text in overrides]
    try:
        result = config.model_validate(with_overrides(settings, parsed))
    except ValidationError as error:
        names = [name for name, _ in parsed]
        raise ConfigError("; ".join(_problem(details, names, origin) for details in error.errors())) from error
    if isinstance(result, AnnotationPipelineConfig):
        check_criteria(result)
    return result


def _problem(details: ErrorDetails, overrides: Sequence[str], origin: str) -> str:
    """What is wrong, after the setting; the origin is named unless an override is the cause."""
    location, override = ".".join(map(str, details["loc"])), override_about(details, overrides)
    place = max(location, override, key=len) if override else f"{origin}: {location or 'parameters'}"
    return f"{place}: {problem_text(details)}"


def _run(arguments: argparse.Namespace) -> None:
    with prepared(arguments, run_name=unique_name(arguments.run_name)) as (pipeline, config):
        run_and_report(lambda: pipeline(config))


@contextmanager
def prepared(
    arguments: argparse.Namespace, defaults: Mapping[str, Any] | None = None, **options: Any
) -> Iterator[tuple[ZenMLPipeline, BaseModel]]:
    """The pipeline that the arguments name, ready to run on their stack, and its configuration.

    `defaults` are run options by flavor of orchestrator, for what neither the file of the pipeline nor that of the
    stack sets.
    """
    name, path = arguments.pipeline, arguments.config or _CONFIGS / f"{arguments.pipeline}.yaml"
    content = read_run_options(path, PIPELINES[name].config, arguments.stack)
    config = read_config(path, arguments.overrides, PIPELINES[name].config)
    pipeline = load_pipeline(name)
    with on_stack(arguments.stack), tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        content = merged((defaults or {}).get(active_flavor(), {}), content)
        yaml.safe_dump(for_active_stack(pipeline, config, content), file, sort_keys=False)
        file.flush()
        yield pipeline.with_options(config_path=file.name, **options), config


def active_flavor() -> str:
    """The flavor of the active orchestrator, such as `kubernetes`."""
    from zenml.client import Client
    from zenml.enums import StackComponentType

    return str(Client().active_stack_model.components[StackComponentType.ORCHESTRATOR][0].flavor_name)


def unique_name(name: str | None) -> str | None:
    """A name of runs in which ZenML fills in date and time: the same name twice would be refused."""
    return name if name is None or "{time}" in name else f"{name}-{{date}}-{{time}}"


def load_pipeline(name: str) -> ZenMLPipeline:
    """The ZenML pipeline of this name, which logs through ZenML."""
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")  # as in ml_filter.cli
    from zenml.utils.source_utils import set_custom_source_root

    set_custom_source_root(str(_ROOT))
    pipeline: ZenMLPipeline = getattr(import_module(f"pipelines.{name}"), f"{name}_pipeline")
    configure_logging(to_standard_logging=True)
    for handler in logging.getLogger().handlers:
        handler.addFilter(without_traceback)
    return pipeline


if __name__ == "__main__":
    sys.exit(main())
