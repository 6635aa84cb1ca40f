"""Alerts about runs: from the command that started them, and from the watcher."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.pipelines.test_rerun import corpus, latest_run  # noqa: F401 - a fixture
from tools import watch

pytestmark = [pytest.mark.zenml, pytest.mark.filterwarnings("ignore")]  # ZenML's own warnings


MANIFEST = Path(__file__).resolve().parents[2] / "deploy/kubernetes/watch/watch.yaml"


@pytest.fixture(autouse=True)
def _alerts(webhook, monkeypatch) -> None:
    monkeypatch.setenv("ML_FILTER_ALERT_WEBHOOK", webhook.url)
    monkeypatch.setattr(watch, "_SETTLED", timedelta(0))


@pytest.fixture
def fail(run, tmp_path) -> Any:
    """Start a run whose first step fails; returns the exit code, what is printed and the run."""

    def start() -> tuple[int, str, Any]:
        (tmp_path / "documents.jsonl").write_text(json.dumps({"text": "Water boils at 100 degrees."}) + "\n")
        code, printed = run("scoring", f"head={tmp_path}", f"source.paths=['{tmp_path}']", "filter.min_score=3")
        return code, printed, latest_run()

    return start


def test_a_failed_run_is_told_once_by_the_command_and_not_again_by_the_watcher(fail, webhook):
    code, printed, failed = fail()
    assert code == 2
    [(_, body)] = webhook.received
    assert (body["event"], body["pipeline"], body["run"], body["step"]) == (
        "failure",
        "scoring",
        failed.name,
        "load_head",
    )
    assert "has no trained head" in body["reason"]
    for _ in range(2):
        assert watch.main(["--once"]) == 0
    assert len(webhook.received) == 1
    assert webhook.url not in printed


def test_a_run_keeps_its_exit_code_if_nobody_can_be_told_and_the_watcher_tells_later(fail, webhook, caplog):
    webhook.codes = [403]
    code, printed, failed = fail()
    assert code == 2
    assert "was not delivered to the webhook: it answered with HTTP 403" in caplog.text
    for _ in range(2):
        assert watch.main(["--once"]) == 0
    assert [body["run"] for _, body in webhook.received] == [failed.name, failed.name]  # refused, then delivered
    assert webhook.url not in printed + caplog.text


def test_a_run_without_a_heartbeat_is_told_once_with_the_step_that_was_alive_last(orchestrator, run, webhook, tmp_path):
    from zenml.client import Client
    from zenml.enums import ExecutionStatus
    from zenml.models import StepRunRequest

    orchestrator("submitting")
    code, printed = run("scoring", f"head={tmp_path}", f"source.paths=['{tmp_path}']", "filter.min_score=3")
    assert code == 0, printed
    dead, store, hour = latest_run(), Client().zen_store, timedelta(hours=1)
    watch.look(hour, hour)
    assert webhook.received == []
    for _ in range(2):
        watch.look(hour, timedelta(0))
    [(_, body)] = webhook.received
    assert (body["event"], body["run"], body["step"]) == ("failure", dead.name, None)
    assert "ZenML says provisioning, but no step has been running since" in body["reason"]

    code, printed = run("scoring", f"head={tmp_path}", f"source.paths=['{tmp_path}']", "filter.min_score=3")
    dead = latest_run()
    # A step that has started on another machine, and was killed there before it could tell the store.
    request = StepRunRequest(
        name="load_head",
        pipeline_run_id=dead.id,
        project=dead.project_id,
        status=ExecutionStatus.RUNNING,
        start_time=datetime.now(UTC),
    )
    step = store.create_run_step(request)
    watch.look(hour, timedelta(0))
    assert len(webhook.received) == 1  # a step that never sent a heartbeat may be one of a local stack
    store.update_step_heartbeat(step.id)
    watch.look(hour, hour)
    assert len(webhook.received) == 1
    for _ in range(2):
        watch.look(hour, timedelta(0))
    assert [(body["run"], body["step"]) for _, body in webhook.received[1:]] == [(dead.name, "load_head")]
    assert "but no heartbeat since" in webhook.received[1][1]["reason"]


def test_a_scoring_run_with_drift_is_told_and_starts_continuous_training_once(corpus, run, webhook):  # noqa: F811
    cyrillic = corpus.directory / "cyrillic.jsonl"
    cyrillic.write_text("".join(json.dumps({"text": f"Вода кипит при {n} градусах"}) + "\n" for n in range(30)))
    overrides = [*corpus.overrides, f"source.paths=['{cyrillic}']", "drift={retrain: absent.yaml}"]
    code, printed = run("scoring", *overrides)
    assert code == 0, printed
    [(_, body)] = webhook.received
    assert (body["event"], body["run"]) == ("drift", latest_run().name)
    assert "100.0% of the documents are in scripts that the head does not know (CYRILLIC)" in body["reason"]
    assert printed.count("configuration file absent.yaml does not exist") == 1
    assert "reasons" in latest_run().run_metadata["drift"]
    watch.look(timedelta(hours=1), timedelta(hours=1), retrain=True)
    assert len(webhook.received) == 1


@pytest.mark.parametrize(
    ("environment", "arguments", "message"),
    [
        ({"ML_FILTER_ALERT_WEBHOOK": None}, ["--once"], "ML_FILTER_ALERT_WEBHOOK is not set"),
        ({}, ["--stuck-after", "3"], "--stuck-after is below 10 minutes"),
        ({"ZENML_STORE_URL": "{webhook}"}, ["--once"], "the runs of the ZenML server cannot be read: "),
    ],
)
def test_a_watcher_that_cannot_watch_ends_with_one_line(
    store, environment, arguments, message, webhook, monkeypatch, capsys
):
    from tests.pipelines.conftest import _reset_zenml

    for name, value in environment.items():
        if value is None:
            monkeypatch.delenv(name)
        else:  # what answers there is not ZenML; for a server that is down, its client would try for 30 s
            monkeypatch.setenv(name, value.format(webhook=webhook.url))
    _reset_zenml()
    assert watch.main(arguments) == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert message in line
    monkeypatch.undo()
    _reset_zenml()


def test_the_watcher_of_the_cluster_is_valid_and_restricted():
    documents = [*yaml.safe_load_all(MANIFEST.read_text())]
    for document in documents:
        kubernetes_validate.validate(document, "1.37", strict=True)
    [pod] = [document["spec"]["template"]["spec"] for document in documents if document["kind"] == "Deployment"]
    [container] = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert container["command"] == ["python", "-m", "tools.watch"]
