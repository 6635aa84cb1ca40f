"""Run pipelines on a schedule, on stacks that can. The body of the poe task `schedule`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from ml_filter.errors import InputError, MlFilterError
from tools.cron import checked_cron, next_time
from tools.run import PIPELINES, add_settings, prepared
from tools.task import run_task
from tools.triggers import delete_unscheduled, dialect_of, trigger_of

if TYPE_CHECKING:
    from zenml.models import ScheduleResponse
    from zenml.orchestrators import BaseOrchestrator

_DEFAULTS = {
    "kubernetes": {
        "settings": {
            "orchestrator.kubernetes": {
                "concurrency_policy": "Forbid",
                "starting_deadline_seconds": 600,
                "successful_jobs_history_limit": 3,
                "failed_jobs_history_limit": 5,
            }
        }
    }
}
"""Of a CronJob: no two runs at once, none that comes ten minutes late, and a few old ones to look at."""


class NotScheduled(MlFilterError):
    """The orchestrator refused a schedule, or cannot be reached."""

    exit_code = 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Manage schedules; returns the exit code: 0 done, 1 the orchestrator refused, 2 bad input."""
    return run_task(_parser(), lambda options: options.task(options), arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="poetry poe schedule", description="Run pipelines on a schedule (UTC).")
    commands = parser.add_subparsers(dest="command", required=True)
    create = commands.add_parser(
        "create",
        help="run a pipeline on a schedule",
        description="Run a pipeline on a schedule. The settings are checked and stored with the schedule.",
        epilog="example: poetry poe schedule create scoring --cron '0 3 * * *' --name nightly --stack kubernetes "
        "head=zenml:educational_value_head@production source.paths='[\"s3://corpora/new/*.parquet\"]' "
        "output=s3://corpora/runs",
    )
    pipelines = create.add_subparsers(dest="pipeline", required=True, metavar="PIPELINE")
    for name, pipeline in PIPELINES.items():
        command = pipelines.add_parser(name, description=pipeline.description)
        add_settings(command, name)
        command.add_argument("--name", required=True, metavar="NAME", help="name of the schedule")
        command.add_argument(
            "--cron",
            required=True,
            metavar="CRON",
            help="when, in UTC: five fields, as in '0 3 * * *'; on SageMaker also six, as in '0 3 * * ? *'",
        )
        command.set_defaults(task=_create)
    tasks = {"pause": _pause, "resume": _resume, "delete": _delete}
    helps = {
        "pause": "start no runs until it is resumed",
        "resume": "start runs again",
        "delete": "delete a schedule in ZenML and in the cluster or cloud; its runs stay",
    }
    for verb, task in tasks.items():
        command = commands.add_parser(verb, help=helps[verb], description=helps[verb])
        command.add_argument("name", metavar="NAME")
        command.set_defaults(task=task)
    listing = commands.add_parser("list", help="list schedules, with next and last run")
    listing.set_defaults(task=_list)
    return parser


def _create(options: argparse.Namespace) -> None:
    from zenml.client import Client
    from zenml.config.schedule import Schedule

    with prepared(options, _DEFAULTS) as (pipeline, config):
        orchestrator = Client().active_stack.orchestrator
        cron = checked_cron(options.cron, dialect_of(orchestrator))
        if _find(options.name):
            raise InputError(f"the schedule {options.name} exists; delete it first: poetry poe schedule delete NAME")
        since = datetime.now(UTC)
        try:
            pipeline.with_options(schedule=Schedule(name=options.name, cron_expression=cron))(config)
            schedule = _existing(options.name)
            trigger = trigger_of(schedule)
            if trigger is None or not trigger.is_active():
                raise NotScheduled(f"{orchestrator.name} has no trigger for it")
        except BaseException as error:
            _undo(options.name, orchestrator, since)
            if not isinstance(error, Exception):
                raise
            raise NotScheduled(f"{options.name} was not scheduled: {_first_line(error)}") from error
    due = next_time(cron)
    when = f"; next run {due:%Y-%m-%d %H:%M} UTC" if due else ""
    print(f"{options.name} runs {options.pipeline} at {cron!r} on {orchestrator.name}{when}")


def _undo(name: str, orchestrator: BaseOrchestrator, since: datetime) -> None:
    """Delete what a schedule that could not be created has left."""
    from zenml.client import Client

    schedule = _find(name)
    if schedule is None:
        return
    if trigger := trigger_of(schedule):
        trigger.delete()
    snapshots = [str(snapshot.id) for snapshot in Client().list_snapshots(schedule_id=schedule.id, named_only=False)]
    delete_unscheduled(orchestrator, since, snapshots)
    Client().zen_store.delete_schedule(schedule.id, soft=False)


def _pause(options: argparse.Namespace) -> None:
    _set_active(options.name, False)


def _resume(options: argparse.Namespace) -> None:
    _set_active(options.name, True)


def _set_active(name: str, active: bool) -> None:
    from zenml.client import Client
    from zenml.models import ScheduleUpdate

    schedule = _existing(name)
    trigger = trigger_of(schedule)
    with _reached(name):
        if trigger is None or trigger.is_active() is None:
            raise InputError(f"nothing starts {name}: its trigger is gone; delete the schedule and create it again")
        trigger.set_active(active)
    Client().zen_store.update_schedule(schedule.id, ScheduleUpdate(active=active))
    print(f"{name} is {'active' if active else 'paused'}")


def _delete(options: argparse.Namespace) -> None:
    from zenml.client import Client

    schedule = _existing(options.name)
    trigger = trigger_of(schedule)
    with _reached(options.name):
        if trigger is not None:
            trigger.delete()
    Client().zen_store.delete_schedule(schedule.id, soft=True)  # its runs still name it
    print(f"{options.name} is deleted")


def _list(options: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("name", "pipeline", "cron", "next run (UTC)", "state", "last run", box=None)
    for schedule in _schedules():
        state = _state(schedule)
        due = next_time(schedule.cron_expression or "") if state.startswith("active") else None
        cells = (schedule.name, _pipeline_of(schedule), schedule.cron_expression or "")
        table.add_row(*cells, f"{due:%Y-%m-%d %H:%M}" if due else "", state, _last_run(schedule))
    if table.row_count:
        Console(width=max(Console().width, 160)).print(table)
    else:
        print("no schedules; see poetry poe schedule create -- --help")


def _state(schedule: ScheduleResponse) -> str:
    try:
        trigger = trigger_of(schedule)
        active = trigger.is_active() if trigger else None
    except Exception as error:  # the clients of clusters and clouds have no common base class
        return f"{'active' if schedule.active else 'paused'}, not checked: {_first_line(error)}"
    return "nothing starts it" if active is None else "active" if active else "paused"


def _pipeline_of(schedule: ScheduleResponse) -> str:
    from zenml.client import Client

    return Client().get_pipeline(schedule.pipeline_id).name if schedule.pipeline_id else ""


def _last_run(schedule: ScheduleResponse) -> str:
    from zenml.client import Client

    runs = Client().list_pipeline_runs(schedule_id=schedule.id, sort_by="desc:created", size=1)
    return next((f"{run.created:%Y-%m-%d %H:%M} {run.status.value}" for run in runs.items), "none")


def _schedules() -> Iterator[ScheduleResponse]:
    from zenml.client import Client
    from zenml.utils.pagination_utils import depaginate

    yield from depaginate(Client().list_schedules, hydrate=True)


def _find(name: str) -> ScheduleResponse | None:
    return next((schedule for schedule in _schedules() if schedule.name == name), None)


def _existing(name: str) -> ScheduleResponse:
    schedule = _find(name)
    if schedule is None:
        names = ", ".join(schedule.name for schedule in _schedules())
        raise InputError(f"no schedule has the name {name!r}; schedules: {names or 'none'}")
    return schedule


@contextmanager
def _reached(name: str) -> Iterator[None]:
    """Errors of a cluster or cloud in one line."""
    try:
        yield
    except MlFilterError:
        raise
    except Exception as error:  # their clients have no common base class
        raise NotScheduled(f"the trigger of {name} cannot be changed: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


if __name__ == "__main__":
    sys.exit(main())
