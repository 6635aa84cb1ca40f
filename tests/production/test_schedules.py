"""Schedules arrive in Kubernetes and EventBridge and leave again; a refused one leaves nothing."""

from __future__ import annotations

from collections.abc import Callable

import boto3
import pytest

from tests.production.conftest import BUCKET
from tools.schedule import main

SETTINGS = [
    "head=zenml:tested_head@1",
    f"source.paths=[s3://{BUCKET}/corpus]",
    f"output=s3://{BUCKET}/scheduled",
    "filter.min_score=0",
]
Command = Callable[..., tuple[int, str]]


@pytest.fixture
def schedule(store, capsys) -> Command:
    """Run a task; returns the exit code and what it printed."""

    def run_task(*arguments: str) -> tuple[int, str]:
        capsys.readouterr()
        code = main(arguments)
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return run_task


def create(schedule: Command, stack: str, cron: str) -> tuple[int, str]:
    return schedule("create", "scoring", "--cron", cron, "--name", "nightly", "--stack", stack, *SETTINGS)


def recorded() -> list[str]:
    from zenml.client import Client

    return [item.name for item in Client().list_schedules(is_archived=False).items]


def line_of(printed: str) -> str:
    return next(line for line in printed.splitlines() if "nightly" in line)


def test_a_stack_without_schedules_says_so_in_one_line(schedule):
    code, printed = schedule("create", "scoring", "--cron", "0 3 * * *", "--name", "nightly", *SETTINGS)
    assert code == 2
    assert printed.splitlines()[-1] == (
        "error: the orchestrator default (local) has no schedules; use a stack that has: --stack kubernetes or "
        "--stack aws"
    )
    assert recorded() == []


def test_a_schedule_of_kubernetes_is_a_cron_job_until_it_is_deleted(schedule, kubernetes_stack, kubernetes):
    secrets = {item["metadata"]["name"] for item in kubernetes.of_kind("secrets")}
    code, printed = create(schedule, "kubernetes", "0 3 * * *")
    assert code == 0, printed
    assert "nightly runs scoring at '0 3 * * *' on kubernetes; next run 2" in printed
    [job] = kubernetes.of_kind("cronjobs")  # the stand-in has checked it against the schemas of Kubernetes
    assert {name: job["spec"][name] for name in job["spec"] if name not in ("jobTemplate", "suspend")} == {
        "schedule": "0 3 * * *",
        "concurrencyPolicy": "Forbid",
        "startingDeadlineSeconds": 600,
        "successfulJobsHistoryLimit": 3,
        "failedJobsHistoryLimit": 5,
    }
    code, printed = create(schedule, "kubernetes", "0 4 * * *")
    assert (code, len(kubernetes.of_kind("cronjobs"))) == (2, 1)
    assert "error: the schedule nightly exists" in printed
    assert line_of(schedule("list")[1]).split()[:4] == ["nightly", "scoring", "0", "3"]
    assert " active " in line_of(schedule("list")[1])
    assert schedule("pause", "nightly") == (0, "nightly is paused\n")
    assert kubernetes.of_kind("cronjobs")[0]["spec"]["suspend"] is True
    assert " paused " in line_of(schedule("list")[1])
    assert schedule("resume", "nightly")[0] == 0
    assert kubernetes.of_kind("cronjobs")[0]["spec"]["suspend"] is False
    assert schedule("delete", "nightly") == (0, "nightly is deleted\n")
    assert kubernetes.of_kind("cronjobs") == []
    assert {item["metadata"]["name"] for item in kubernetes.of_kind("secrets")} == secrets
    assert recorded() == []
    code, printed = schedule("delete", "nightly")
    assert code == 2
    assert "no schedule has the name 'nightly'; schedules: none" in printed


def test_a_schedule_of_sagemaker_is_one_of_eventbridge_until_it_is_deleted(schedule, aws_stack):
    scheduler, sagemaker = boto3.client("scheduler"), boto3.client("sagemaker")
    pipelines = {item["PipelineName"] for item in sagemaker.list_pipelines()["PipelineSummaries"]}
    code, printed = create(schedule, "aws", "0 3 * * 1-5")
    assert code == 0, printed
    [item] = scheduler.list_schedules()["Schedules"]
    kept = scheduler.get_schedule(Name=item["Name"])
    assert kept["ScheduleExpression"] == "cron(0 3 ? * MON,TUE,WED,THU,FRI *)"
    assert kept["State"] == "ENABLED"
    assert " active " in line_of(schedule("list")[1])
    assert schedule("pause", "nightly")[0] == 0
    paused = scheduler.get_schedule(Name=item["Name"])
    assert paused["State"] == "DISABLED"
    assert paused["Target"] == kept["Target"]
    assert schedule("resume", "nightly")[0] == 0
    assert scheduler.get_schedule(Name=item["Name"])["State"] == "ENABLED"
    scheduler.delete_schedule(Name=item["Name"])  # by hand
    assert "nothing starts it" in line_of(schedule("list")[1])
    assert schedule("pause", "nightly")[0] == 2
    assert schedule("delete", "nightly")[0] == 0
    code, printed = create(schedule, "aws", "0 3 ? * MON *")
    assert code == 0, printed
    assert schedule("delete", "nightly")[0] == 0
    assert scheduler.list_schedules()["Schedules"] == []
    left = {item["PipelineName"] for item in sagemaker.list_pipelines()["PipelineSummaries"]} - pipelines
    assert len(left) == 1  # of the schedule that was deleted by hand


@pytest.mark.parametrize("stack", ["aws", "kubernetes"])
def test_a_bad_cron_expression_leaves_nothing(stack, schedule, request, kubernetes):
    request.getfixturevalue(f"{stack}_stack")
    sagemaker, scheduler = boto3.client("sagemaker"), boto3.client("scheduler")
    before = len(sagemaker.list_pipelines()["PipelineSummaries"])
    code, printed = create(schedule, stack, "0 3 1 * 1" if stack == "aws" else "0 3 * * ? *")
    assert code == 2
    assert "This stack takes " in printed
    assert "Traceback" not in printed
    assert recorded() == []
    assert kubernetes.of_kind("cronjobs") == []
    assert scheduler.list_schedules()["Schedules"] == []
    assert len(sagemaker.list_pipelines()["PipelineSummaries"]) == before


def test_a_schedule_that_eventbridge_refuses_leaves_nothing(schedule, aws_stack, monkeypatch):
    from sagemaker.workflow.pipeline import Pipeline

    def refused(*arguments: object, **options: object) -> None:
        raise ValueError("AccessDeniedException: not authorized to perform scheduler:CreateSchedule")

    monkeypatch.setattr(Pipeline, "put_triggers", refused)  # moto permits everything
    sagemaker = boto3.client("sagemaker")
    before = {item["PipelineName"] for item in sagemaker.list_pipelines()["PipelineSummaries"]}
    code, printed = create(schedule, "aws", "0 3 * * *")
    assert code == 1
    assert "error: nightly was not scheduled: AccessDeniedException: not authorized" in printed
    assert recorded() == []
    assert {item["PipelineName"] for item in sagemaker.list_pipelines()["PipelineSummaries"]} == before
