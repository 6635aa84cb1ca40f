"""Tell about runs on other machines that failed, finished or died. The body of the poe task `watch`.

A run that is submitted or scheduled ends when nobody looks, and a killed container runs no hook: only somebody outside
can tell.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from loguru import logger

from ml_filter.config import Settings
from ml_filter.errors import ConfigError, InputError
from tools.alerting import retrain_after_drift, tell, tell_if_stuck
from tools.run import PIPELINES
from tools.task import run_task

if TYPE_CHECKING:
    from zenml.models import PipelineRunResponse

_SETTLED = timedelta(minutes=1)
"""A run that ended so recently is left to the command that started it, which may be telling right now."""
_UNFINISHED = timedelta(days=14)


def main(arguments: Sequence[str] | None = None) -> int:
    """Watch; returns the exit code: 0 after one look, 2 if the settings are wrong or the server is not there."""
    return run_task(_parser(), _watch, arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="poetry poe watch",
        description="Send alerts about runs that failed or died, or events of ML_FILTER_ALERT_ON, to the webhook "
        "ML_FILTER_ALERT_WEBHOOK. Each alert is sent once.",
    )
    parser.add_argument("--once", action="store_true", help="check once, for a CronJob (default: until stopped)")
    parser.add_argument("--every", type=float, default=60, metavar="S", help="seconds between checks (default: 60)")
    parser.add_argument(
        "--since", type=float, default=24, metavar="H", help="report runs that ended in the last H hours (default: 24)"
    )
    parser.add_argument(
        "--stuck-after",
        type=float,
        default=30,
        metavar="MIN",
        help="minutes without a heartbeat after which a run is dead (default: 30, at least 10)",
    )
    parser.add_argument(
        "--retrain",
        action="store_true",
        help="start continuous training after scoring runs with drift (drift.retrain)",
    )
    return parser


def _watch(options: argparse.Namespace) -> None:
    if Settings().alert_webhook is None:
        raise ConfigError("ML_FILTER_ALERT_WEBHOOK is not set: set it to the URL of your webhook")
    if options.stuck_after < 10:
        raise ConfigError("--stuck-after is below 10 minutes; heartbeats may be five apart")
    while True:
        try:
            look(timedelta(hours=options.since), timedelta(minutes=options.stuck_after), retrain=options.retrain)
        except Exception as error:  # the client has no common base class; the server may be back at the next look
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            if options.once:
                raise InputError(f"the runs of the ZenML server cannot be read: {reason}") from error
            logger.warning(f"The runs of the ZenML server cannot be read: {reason}; trying again")
        if options.once:
            return
        time.sleep(options.every)


def look(since: timedelta, stuck_after: timedelta, *, retrain: bool = False) -> None:
    """Tell about every run that ended within a time, and every run without a recent heartbeat.

    With `retrain`, start the continuous training that scoring runs with drift ask for.
    """
    now = datetime.now(UTC)
    for run in _runs(end_time=f"gte:{now - since:%Y-%m-%d %H:%M:%S}"):
        if run.end_time and run.end_time.replace(tzinfo=UTC) < now - _SETTLED:
            tell(run)
            if retrain:
                retrain_after_drift(run)
    for run in _runs(in_progress=True, created=f"gte:{now - _UNFINISHED:%Y-%m-%d %H:%M:%S}"):
        tell_if_stuck(run, stuck_after)


def _runs(**conditions: object) -> Iterator[PipelineRunResponse]:
    """The runs of our pipelines; other pipelines may share the server."""
    from zenml.client import Client
    from zenml.utils.pagination_utils import depaginate

    for run in depaginate(Client().list_pipeline_runs, hydrate=True, **conditions):
        if run.pipeline and run.pipeline.name in PIPELINES:
            yield run


if __name__ == "__main__":
    sys.exit(main())
