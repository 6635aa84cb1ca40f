"""What starts the runs of a schedule: a CronJob, or a schedule of EventBridge. ZenML only keeps a record."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol

from ml_filter.errors import ConfigError
from tools.cron import Dialect

if TYPE_CHECKING:
    from zenml.models import ScheduleResponse
    from zenml.orchestrators import BaseOrchestrator


class Trigger(Protocol):
    """The part of a schedule that is outside ZenML."""

    def is_active(self) -> bool | None:
        """Whether it starts runs; None: it does not exist."""

    def set_active(self, active: bool) -> None:
        """Pause or resume it."""

    def delete(self) -> None:
        """Delete it and all that was made for it, as far as it exists."""


def dialect_of(orchestrator: BaseOrchestrator) -> Dialect:
    """The cron dialect of an orchestrator.

    Raises:
        ConfigError: it has no schedules that these tasks can manage.
    """
    if orchestrator.flavor not in _TRIGGERS:
        raise ConfigError(
            f"the orchestrator {orchestrator.name} ({orchestrator.flavor}) has no schedules; use a stack that has: "
            "--stack kubernetes or --stack aws"
        )
    return "eventbridge" if orchestrator.flavor == "sagemaker" else "five fields"


def trigger_of(schedule: ScheduleResponse) -> Trigger | None:
    """The trigger of a schedule; None: its orchestrator was deleted, or is of another kind."""
    from zenml.client import Client

    orchestrator = Client()._get_orchestrator_for_schedule(schedule)
    kind = _TRIGGERS.get(orchestrator.flavor) if orchestrator else None
    return kind(orchestrator, schedule) if kind else None


class _CronJob:
    """A CronJob, and the secret with ZenML's token that its jobs read."""

    def __init__(self, orchestrator: Any, schedule: ScheduleResponse) -> None:
        from kubernetes import client

        self._batch = client.BatchV1Api(orchestrator.get_kube_client())
        self._core = client.CoreV1Api(orchestrator.get_kube_client())
        self._namespace = orchestrator.config.kubernetes_namespace
        self._name = schedule.run_metadata.get("cron_job_name")

    def is_active(self) -> bool | None:
        job = self._read()
        return None if job is None else not job.spec.suspend

    def set_active(self, active: bool) -> None:
        self._batch.patch_namespaced_cron_job(self._name, self._namespace, {"spec": {"suspend": not active}})

    def delete(self) -> None:
        job = self._read()
        if job is None:
            return
        self._batch.delete_namespaced_cron_job(self._name, self._namespace)
        [container] = job.spec.job_template.spec.template.spec.containers
        for variable in container.env or []:
            secret = variable.value_from and variable.value_from.secret_key_ref
            if secret and secret.name.startswith("zenml-token-"):
                self._core.delete_namespaced_secret(secret.name, self._namespace)

    def _read(self) -> Any:
        from kubernetes.client import ApiException

        try:
            return (self._name and self._batch.read_namespaced_cron_job(self._name, self._namespace)) or None
        except ApiException as error:
            if error.status == 404:
                return None
            raise


class _EventBridge:
    """A schedule of EventBridge, and the pipeline of SageMaker that it starts and that was made for it."""

    def __init__(self, orchestrator: Any, schedule: ScheduleResponse) -> None:
        session = orchestrator.sagemaker_session
        self._scheduler, self._sagemaker = session.boto_session.client("scheduler"), session.sagemaker_client
        _, _, path = str(schedule.run_metadata.get("trigger_url", "")).partition("#schedules/")
        group, _, name = path.rpartition("/")
        self._key: dict[str, str] = {"Name": name, "GroupName": group or "default"} if name else {}

    def is_active(self) -> bool | None:
        found = self._read()
        return None if found is None else found["State"] == "ENABLED"

    def set_active(self, active: bool) -> None:
        found = self._read()
        if found is not None:
            kept = {name: value for name, value in found.items() if name in _UPDATED}
            self._scheduler.update_schedule(**kept, State="ENABLED" if active else "DISABLED")

    def delete(self) -> None:
        found = self._read()
        if found is None:
            return
        self._scheduler.delete_schedule(**self._key)
        delete_sagemaker_pipeline(self._sagemaker, found["Target"]["Arn"].rpartition("/")[2])

    def _read(self) -> Any:
        if not self._key:
            return None
        try:
            return self._scheduler.get_schedule(**self._key)
        except self._scheduler.exceptions.ResourceNotFoundException:
            return None


_UPDATED = (
    "Name",
    "GroupName",
    "ScheduleExpression",
    "ScheduleExpressionTimezone",
    "FlexibleTimeWindow",
    "Target",
    "StartDate",
    "EndDate",
    "Description",
    "KmsKeyArn",
    "ActionAfterCompletion",
)
"""What an update of a schedule has to repeat: EventBridge resets what is left out."""
_TRIGGERS: dict[str, type[Any]] = {"kubernetes": _CronJob, "sagemaker": _EventBridge}


def delete_sagemaker_pipeline(client: Any, name: str) -> None:
    """Delete a pipeline, unless it is gone, or still runs."""
    from botocore.exceptions import ClientError

    try:
        client.delete_pipeline(PipelineName=name)
    except ClientError as error:
        if error.response["Error"]["Code"] not in ("ResourceNotFound", "ConflictException"):
            raise


def delete_unscheduled(orchestrator: Any, since: datetime, snapshots: list[str]) -> None:
    """Delete the pipelines of SageMaker that ZenML created for these snapshots before it failed to schedule them."""
    if orchestrator.flavor != "sagemaker":
        return  # on Kubernetes, the CronJob comes last
    client = orchestrator.sagemaker_session.sagemaker_client
    for page in client.get_paginator("list_pipelines").paginate(CreatedAfter=since):
        for summary in page["PipelineSummaries"]:
            name = summary["PipelineName"]
            definition = client.describe_pipeline(PipelineName=name)["PipelineDefinition"]
            if any(snapshot in definition for snapshot in snapshots):
                delete_sagemaker_pipeline(client, name)
