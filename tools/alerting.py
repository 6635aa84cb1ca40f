"""What runs in the ZenML store have to tell, and telling it once: the store remembers what was delivered."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from loguru import logger

from ml_filter import errors
from ml_filter.alerts import Alert, is_wanted, send_alert
from steps.names import DRIFT

if TYPE_CHECKING:
    from zenml.models import PipelineRunResponse

_RETRAINED = "retrained"


@dataclass(frozen=True)
class Failure:
    """Why a run failed, and the exit code for it. `step` is None if no step failed."""

    step: str | None
    reason: str
    exit_code: int = 1


def failure_of(run: PipelineRunResponse) -> Failure | None:
    """Why a run failed or was stopped; None: it did not, or goes on."""
    if run.status.is_successful or not run.status.is_finished:
        return None
    for name, step in run.steps.items():
        if step.status.is_failed:
            cause = step.exception_info  # None if its container was killed
            reason = (cause and cause.message) or "see its log in the dashboard"
            error_type = getattr(errors, str(cause and cause.source).rpartition(".")[2], None)
            return Failure(name, reason, getattr(error_type, "exit_code", 1))
    return Failure(None, f"it ended as {run.status.value}")


def tell(run: PipelineRunResponse) -> None:
    """Send the alerts about a run that were not delivered yet."""
    for name, alert in _alerts_of(run):
        _tell_once(run, name, alert)


def tell_of_failure(since: datetime) -> None:
    """Send the alert about the run that this user started since then and that failed, if there is one."""
    from zenml.client import Client

    if is_wanted("failure"):
        started = f"gte:{since.astimezone(UTC):%Y-%m-%d %H:%M:%S}"
        user = Client().active_user.id
        runs = Client().list_pipeline_runs(created=started, user=user, status="failed", sort_by="desc:created", size=1)
        for run in runs.items:
            tell(Client().get_pipeline_run(run.id))


def tell_if_stuck(run: PipelineRunResponse, limit: timedelta) -> None:
    """Send an alert about a run that goes on in the store but has not sent a heartbeat for this long.

    ZenML's status stays `running` if the orchestrator dies with its step, or cannot start one. Steps on other machines
    send a heartbeat every 15 seconds, and every five minutes at least; those of a local stack send none.
    """
    unfinished = {name: step for name, step in run.steps.items() if not step.status.is_finished}
    if any(step.latest_heartbeat is None for step in unfinished.values()):
        return
    heartbeats = [run.created, *(moment for step in run.steps.values() for moment in _moments(step))]
    last = max(_utc(moment) for moment in heartbeats)
    if datetime.now(UTC) - last < limit:
        return
    since = f"{last:%Y-%m-%d %H:%M} UTC"
    if unfinished:
        reason = f"ZenML says {run.status.value}, but no heartbeat since {since}; its container was probably killed"
    else:
        reason = (
            f"ZenML says {run.status.value}, but no step has been running since {since}; its orchestrator was probably "
            "killed, or cannot start a container"
        )
    alert = Alert(event="failure", step=next(iter(unfinished), None), reason=reason, **_about(run))
    _tell_once(run, "stuck", alert)


def retrain_after_drift(run: PipelineRunResponse) -> None:
    """Start the continuous training that a scoring run asks for, once, if its documents differ too much."""
    from zenml import log_metadata

    from tools.run import main
    from tools.run_options import STACK_CONFIGS

    drift: Any = run.run_metadata.get(DRIFT)
    if not drift or not drift["reasons"] or not drift["retrain"] or _RETRAINED in run.run_metadata:
        return
    now = datetime.now(UTC).isoformat(timespec="seconds")
    log_metadata(metadata={_RETRAINED: now}, run_id_name_or_prefix=run.id)
    stack = run.stack.name if run.stack else ""
    options = ["--stack", stack] if (STACK_CONFIGS / f"{stack}.yaml").exists() else []
    logger.info(f"{run.name} met documents unlike those of its head: continuous training starts")
    main(["continuous_training", "--config", drift["retrain"], *options])


def _moments(step: Any) -> Iterator[datetime]:
    yield from filter(None, (step.start_time, step.end_time, step.latest_heartbeat))


def _utc(moment: datetime) -> datetime:
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)


def _alerts_of(run: PipelineRunResponse) -> Iterator[tuple[str, Alert]]:
    if failure := failure_of(run):
        yield "failure", Alert(event="failure", step=failure.step, reason=failure.reason, **_about(run))
    elif run.status.is_successful:
        yield "success", Alert(event="success", **_about(run))
    drift: Any = run.run_metadata.get(DRIFT)
    if drift and drift["reasons"]:
        yield DRIFT, Alert(event="drift", reason="; ".join(drift["reasons"]), **_about(run))


def _about(run: PipelineRunResponse) -> dict[str, Any]:
    from zenml.utils.dashboard_utils import get_run_url

    return {"pipeline": run.pipeline.name if run.pipeline else "", "run": run.name, "url": get_run_url(run)}


def _tell_once(run: PipelineRunResponse, name: str, alert: Alert) -> None:
    from zenml import log_metadata

    marker = f"alerted_{name}"
    if is_wanted(alert.event) and marker not in run.run_metadata and send_alert(alert):
        now = datetime.now(UTC).isoformat(timespec="seconds")
        log_metadata(metadata={marker: now}, run_id_name_or_prefix=run.id)
