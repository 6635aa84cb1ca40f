"""Run a pipeline again, from any step and with other settings. The body of the poe task `rerun`."""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any

import yaml

from ml_filter.errors import ConfigError, InputError
from tools.outcome import run_and_report
from tools.run import PIPELINES, load_pipeline, unique_name, validated
from tools.run_options import on_stack
from tools.task import run_task

if TYPE_CHECKING:
    from pydantic import BaseModel
    from zenml.models import PipelineRunResponse
    from zenml.pipelines.pipeline_definition import Pipeline

_KEPT = ("settings", "environment", "secrets", "tags", "model", "execution_mode", "retry", "extra")
"""What a run keeps of the options of the run that it repeats, beside the settings of the pipeline."""
_RECORD = "track_run"
"""The step that records a run: of every run, so it is never skipped."""
_NOT_OFFERED = (
    "this ZenML server starts no runs (ZenML Pro does, and a server with a workload manager); without --server, the "
    "run starts from your machine"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a pipeline again; returns the exit code: 0 done or submitted, 1 failed, 2 bad input."""
    return run_task(_parser(), _rerun, arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="poetry poe rerun",
        description="Run a pipeline again with the settings of an earlier run and the current code.",
        epilog="examples: poetry poe rerun scoring-2026_11_28-22_31_10_179120 --from filter_corpus "
        "filter.min_score=2.5; poetry poe rerun 842ec47d",
    )
    parser.add_argument("run", metavar="RUN", help="name of the run, its id, or the start of one")
    parser.add_argument("overrides", nargs="*", metavar="NAME=VALUE", help="override a setting of the earlier run")
    parser.add_argument("--from", dest="start", metavar="STEP", help="first step to run; earlier outputs are reused")
    parser.add_argument("--run-name", metavar="NAME", help="name of the new run, to which date and time are added")
    parser.add_argument("--server", action="store_true", help="let the ZenML server start the run")
    return parser


def _rerun(options: argparse.Namespace) -> None:
    run = _find_run(options.run)
    name = run.pipeline.name if run.pipeline else ""
    if name not in PIPELINES:
        raise InputError(f"{run.name} is a run of the pipeline {name!r}; known pipelines: {', '.join(PIPELINES)}")
    recorded = (run.config.parameters or {}).get("config")
    if recorded is None:
        raise InputError(f"{run.name} has no recorded settings, so it cannot be run again; start a new run")
    before = validated(recorded, (), PIPELINES[name].config, run.name)
    after = validated(recorded, options.overrides, PIPELINES[name].config, run.name)
    pipeline = load_pipeline(name)
    upstream, changed = _compare(pipeline, before, after)
    skip = _steps_to_skip(run, options.start, upstream)
    if refused := [step for step in upstream if step in skip and step in changed]:
        raise ConfigError(
            f"--from {options.start} reuses the output of {refused[0]}, whose settings change; use --from {refused[0]}"
        )
    if options.server:
        run_and_report(lambda: _on_server(run, skip, changed))
        return
    stack = run.stack.name if run.stack else None
    with on_stack(stack), _configured(pipeline, run, upstream, options.run_name) as configured:
        run_and_report(lambda: configured.replay(pipeline_run=run.id, skip=skip, input_overrides={"config": after}))


def _find_run(name: str) -> PipelineRunResponse:
    from zenml.client import Client
    from zenml.exceptions import ZenKeyError

    try:
        return Client().get_pipeline_run(name)
    except ZenKeyError:
        raise InputError(f"several runs match {name!r}; give more of the name: {_latest(name)}") from None
    except KeyError:
        raise InputError(f"unknown run {name!r}; the latest runs: {_latest('') or 'none'}") from None


def _latest(prefix: str) -> str:
    from zenml.client import Client

    runs = Client().list_pipeline_runs(name=f"startswith:{prefix}", sort_by="desc:created", size=5)
    return ", ".join(run.name for run in islice(runs, 5))


def _compare(
    pipeline: Pipeline, before: BaseModel, after: BaseModel
) -> tuple[dict[str, set[str]], dict[str, dict[str, Any]]]:
    """The steps in order with those before them, and the parameters of the steps that the overrides change."""
    plans = []
    for config in (before, after):
        plan = pipeline.copy()
        plan.prepare(config=config)
        plans.append(plan.invocations)
    upstream = {name: set(step.upstream_steps) for name, step in plans[1].items()}
    changed = {
        name: dict(step.parameters)
        for name, step in plans[1].items()
        if name not in plans[0] or step.parameters != plans[0][name].parameters
    }
    return upstream, changed


def _steps_to_skip(run: PipelineRunResponse, start: str | None, upstream: Mapping[str, set[str]]) -> set[str]:
    """The steps whose outputs are reused: all that do not depend on the step to start from, if they succeeded.

    Raises:
        InputError: the pipeline has no such step, or a step that it depends on did not succeed.
    """
    if start is None:
        return set()
    if start not in upstream:
        raise InputError(f"{run.name} has no step {start!r}; its steps: {', '.join(upstream)}")
    again, needed = {start, _RECORD}, {*upstream[start]}
    for name in upstream:  # in order of execution
        if upstream[name] & again:
            again.add(name)
    for name in reversed([*upstream]):
        if name in needed:
            needed |= upstream[name]
    succeeded = {name for name, step in run.steps.items() if step.status.is_successful}
    for name in upstream:
        if name in needed and name not in succeeded:
            raise InputError(f"{name} of {run.name} returned nothing to reuse; use --from {name}")
    reusable: set[str] = set()
    for name in upstream:  # a step after a repeated one cannot be skipped
        if name not in again and name in succeeded and upstream[name] <= reusable:
            reusable.add(name)
    return reusable


@contextmanager
def _configured(
    pipeline: Pipeline, run: PipelineRunResponse, steps: Mapping[str, Any], run_name: str | None
) -> Iterator[Pipeline]:
    """The pipeline with the options of the earlier run: image, resources, secrets, model."""
    content = run.config.model_dump(mode="json", include={*_KEPT}, exclude_unset=True, exclude_none=True)
    content["steps"] = {
        name: {"settings": settings}
        for name, step in run.steps.items()
        if name in steps and (settings := step.config.model_dump(mode="json", exclude_unset=True).get("settings"))
    }
    logging.getLogger("zenml.pipelines.pipeline_definition").addFilter(_not_about_dynamic_pipelines)
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump({name: value for name, value in content.items() if value}, file, sort_keys=False)
        file.flush()
        yield pipeline.with_options(config_path=file.name, run_name=unique_name(run_name))


def _not_about_dynamic_pipelines(record: logging.LogRecord) -> bool:
    """ZenML warns about other settings as if the pipeline had changed while it ran."""
    return "original dynamic pipeline" not in record.getMessage()


def _on_server(run: PipelineRunResponse, skip: set[str], changed: Mapping[str, dict[str, Any]]) -> PipelineRunResponse:
    from pydantic_core import to_jsonable_python
    from zenml.client import Client
    from zenml.config.pipeline_run_configuration import ReplayRunConfiguration
    from zenml.exceptions import ZenMLBaseException

    steps = {name: {"parameters": to_jsonable_python(parameters)} for name, parameters in changed.items()}
    configuration = ReplayRunConfiguration.model_validate({"steps": steps, "steps_to_skip": skip})
    try:
        return Client().replay_pipeline_run(run.id, run_configuration=configuration)
    except (TypeError, RuntimeError, ValueError, ZenMLBaseException) as error:
        reason = str(error)
        if "not supported for this server" in reason or "not connected to a ZenML Server" in reason:
            raise ConfigError(_NOT_OFFERED) from None
        raise InputError(f"the ZenML server does not start {run.name} again: {reason}") from error


if __name__ == "__main__":
    sys.exit(main())
