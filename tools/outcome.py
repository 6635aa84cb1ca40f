"""What became of a pipeline run: its summary, its error in one line, and how to watch it if it goes on elsewhere."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from ml_filter.errors import MlFilterError
from tools.alerting import failure_of, retrain_after_drift, tell, tell_of_failure

if TYPE_CHECKING:
    from zenml.models import PipelineRunResponse

_SUMMARY = (
    *("read", "rejected", "sampled", "documents", "scored", "failed", "kept", "dropped"),
    *("train", "held_out", "shards_new", "shards_reused", "answers_asked", "answers_from_ledger", "spearman", "mae"),
)
"""Counts and figures in the summary at the end."""


def run_and_report(start: Callable[[], PipelineRunResponse | None]) -> None:
    """Start a run and say what became of it. Errors of ours are raised as they are, without ZenML's around them.

    Raises:
        RunFailed: the orchestrator or the stack refuses the run, or as `_finish`.
    """
    from zenml.exceptions import StackValidationError
    from zenml.orchestrators.exceptions import PipelineSubmissionError

    started, since = time.monotonic(), datetime.now(UTC)
    try:
        run = start()
    except Exception as error:
        tell_of_failure(since)
        if reason := domain_error(error):
            raise reason from None
        if isinstance(error, (PipelineSubmissionError, StackValidationError)):
            raise RunFailed(" ".join(str(error).split())) from error
        raise
    if run is not None:
        _finish(run.id, time.monotonic() - started)


def without_traceback(record: logging.LogRecord) -> bool:
    """Log an error of ours in one line, which says what to do, without ZenML's traceback."""
    if record.exc_info and domain_error(record.exc_info[1]):
        record.exc_info = record.exc_text = None
    return True


def domain_error(error: BaseException | None) -> MlFilterError | None:
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
    tell(run)
    retrain_after_drift(run)
    failure = failure_of(run)
    if failure is None:
        return
    failed = RunFailed(
        f"step {failure.step} of {run.name} failed: {failure.reason}"
        if failure.step
        else f"{run.name}: {failure.reason}"
    )
    failed.exit_code = failure.exit_code
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
