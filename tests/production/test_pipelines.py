"""Pipelines with every step in its own box: nothing is shared but object storage and the ZenML server."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from ml_filter.documents.manifest import read_manifest
from tests.annotation.misbehaving import MisbehavingServer, Reply, chat
from tests.production.boxes import Boxes
from tests.production.conftest import BUCKET, IMAGE, aws_client
from tools.schedule import main as schedule

DOCUMENTS = [{"id": f"d{n}", "text": f"[d{n}] Water boils at {n} degrees. " * (1 + n % 3)} for n in range(24)]


@pytest.fixture(scope="module")
def corpus(cloud) -> list[str]:
    """The URLs of two files with documents."""
    lines = [json.dumps(row) + "\n" for row in DOCUMENTS]
    for number, part in enumerate((lines[:12], lines[12:])):
        aws_client(cloud, "s3").put_object(Bucket=BUCKET, Key=f"corpus/{number}.jsonl", Body="".join(part).encode())
    return [f"s3://{BUCKET}/corpus/{number}.jsonl" for number in range(2)]


@pytest.fixture(scope="module")
def endpoint():
    """An LLM that answers every question; `requests` has all of them."""
    server = MisbehavingServer(lambda request: chat(f"Score: {int(request.document[1:]) % 6}"))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield server
    server.over.set()
    server.shutdown()
    server.server_close()


def annotated(endpoint: MisbehavingServer, corpus: list[str]) -> dict[str, Any]:
    """Parameters of the annotation of the whole corpus, in which a kill may cost two answers and those in flight."""
    annotate = {"prompts": ["educational_value"], "endpoints": [endpoint.url], "model": "m", "max_concurrency": 2}
    return {
        "source": {"paths": corpus},
        "sample": {"size": 100},
        "deduplicate": None,
        "annotate": {**annotate, "ledger_answers": 2, "max_retries": 0},
    }


TRAIN = {"kind": "hashing"}
FILTER = {"min_score": 0}


@dataclass
class Cluster:
    """Submits pipelines to one of the stacks, and runs them there."""

    stack: str
    run: Any
    path: Path
    boxes: Boxes
    sagemaker: Any = None
    kubernetes: Any = None

    def write(self, **parameters: Any) -> None:
        """Write the file of a pipeline."""
        # Its orchestrator looks often at its pods, and a killed step is soon known to be dead.
        settings = {"orchestrator.kubernetes": {"job_monitoring_interval": 0.5}} if self.kubernetes else {}
        content = {
            "parameters": {"output": f"s3://{BUCKET}/{self.stack}", "tracking": {"mode": "off"}, **parameters},
            "settings": settings,
            "environment": {"ML_FILTER_LEASE_S": "2"},
            "model": {"name": f"head_{self.stack}"},
        }
        self.path.write_text(yaml.safe_dump(content))

    def submit(self, pipeline: str, **parameters: Any) -> tuple[int, str]:
        """What `poetry poe run-PIPELINE-pipeline` returns and prints."""
        self.write(**parameters)
        return self.run(pipeline, "--stack", self.stack, "--config", str(self.path))

    def complete(self, pipeline: str, **parameters: Any) -> Any:
        """Run a pipeline to its end; returns the run as the ZenML server has it."""
        code, printed = self.submit(pipeline, **parameters)
        assert code == 0, printed
        if self.sagemaker:
            assert "not finished. Watch it at http://127.0.0.1" in printed
            result = self.sagemaker.run()
            assert not any(result.codes.values()), [box.log for box in result.boxes.values()]
        return self.completed()

    def completed(self) -> Any:
        run = last_run()
        assert run.status.value == "completed", {name: step.status.value for name, step in run.steps.items()}
        return run


def last_run() -> Any:
    from zenml.client import Client

    return Client().get_pipeline_run(next(iter(Client().list_pipeline_runs(size=1, sort_by="desc:created"))).id)


@pytest.fixture
def aws(aws_stack, run, sagemaker, tmp_path) -> Cluster:
    return Cluster(aws_stack, run, tmp_path / "pipeline.yaml", sagemaker.boxes, sagemaker=sagemaker)


@pytest.fixture
def kubernetes_cluster(kubernetes_stack, run, kubernetes, tmp_path) -> Cluster:
    return Cluster(kubernetes_stack, run, tmp_path / "pipeline.yaml", kubernetes.boxes, kubernetes=kubernetes)


def manifest_of(run: Any, step: str) -> Any:
    """The manifest of the directory that a step wrote."""
    return read_manifest(run.steps[step].run_metadata["path"])


def test_on_sagemaker(aws, endpoint, corpus):
    before = len(endpoint.requests)
    run = aws.complete("end_to_end", **annotated(endpoint, corpus), train=TRAIN, filter=FILTER)
    assert manifest_of(run, "filter_corpus").counts["kept"] == len(DOCUMENTS)
    run = aws.complete("annotation", **annotated(endpoint, corpus))  # makes a version of the model too, without a head
    assert len(endpoint.requests) - before == len(DOCUMENTS), "the second run has the answers of the first"

    labels = run.steps["aggregate_scores"].run_metadata["path"]
    run = aws.complete("training", labels={"paths": [labels]}, train=TRAIN)
    assert str(run.steps["train_head"].run_metadata["path"]).startswith(f"s3://{BUCKET}/aws/head-")
    run = aws.complete("scoring", head="zenml:head_aws@3", source={"paths": corpus}, filter=FILTER)
    assert manifest_of(run, "score_corpus").counts["scored"] == len(DOCUMENTS)

    steps = aws.sagemaker.definition(aws.sagemaker.newest())["Steps"]
    images = {step["Arguments"]["AlgorithmSpecification"]["TrainingImage"] for step in steps}
    machines = {step["Name"]: step["Arguments"]["ResourceConfig"]["InstanceType"] for step in steps}
    assert images == {IMAGE}
    assert (machines["score_corpus"], machines["filter_corpus"]) == ("ml.m5.2xlarge", "ml.m5.xlarge")


def test_on_kubernetes(kubernetes_cluster, endpoint, corpus):
    cluster, api = kubernetes_cluster, kubernetes_cluster.kubernetes
    run = cluster.complete("end_to_end", **annotated(endpoint, corpus), train=TRAIN, filter=FILTER)
    assert manifest_of(run, "filter_corpus").counts["kept"] == len(DOCUMENTS)
    labels = run.steps["aggregate_scores"].run_metadata["path"]
    cluster.complete("training", labels={"paths": [labels]}, train=TRAIN)

    cluster.write(head="zenml:head_kubernetes@2", source={"paths": corpus}, filter=FILTER)
    weekly = ["--cron", "0 3 * * 0", "--name", "weekly", "--stack", "kubernetes", "--config", str(cluster.path)]
    assert schedule(["create", "scoring", *weekly]) == 0
    [cron_job] = api.of_kind("cronjobs")
    job = api.trigger("ml-filter", cron_job["metadata"]["name"])
    assert api.finished("ml-filter", job) == "Complete"
    assert manifest_of(cluster.completed(), "score_corpus").counts["scored"] == len(DOCUMENTS)
    assert schedule(["delete", "weekly"]) == 0
    assert api.of_kind("cronjobs") == []

    pods = [job["spec"]["template"]["spec"] for job in api.of_kind("jobs")]
    assert {pod["containers"][0]["image"] for pod in pods} == {IMAGE}
    assert {pod["securityContext"]["runAsNonRoot"] for pod in pods} == {True}
    requests = {pod["containers"][0]["resources"]["requests"]["memory"] for pod in pods}
    assert {"8Gi", "16Gi"} < requests
    variables = [variable for pod in pods for variable in pod["containers"][0]["env"]]
    tokens = [variable for variable in variables if "TOKEN" in variable["name"] or "KEY" in variable["name"]]
    assert tokens
    assert not any("value" in token for token in tokens), "they are in a Secret"


def test_annotation_goes_on_in_an_empty_box_after_a_kill(kubernetes_cluster, endpoint, corpus):
    cluster, before, ended = kubernetes_cluster, len(endpoint.requests), threading.Event()
    parameters = {**annotated(endpoint, corpus), "output": f"s3://{BUCKET}/killed"}
    answer = endpoint.answer
    endpoint.answer = lambda request: Reply(answer(request), delay_s=0.05)

    def kill() -> None:
        while not ended.wait(0.01):
            if len(endpoint.requests) - before >= 12:
                [box] = [box for box in cluster.boxes.started if "annotate" in box.name and box.is_running]
                box.kill()
                return

    killer = threading.Thread(target=kill)
    killer.start()
    code, printed = cluster.submit("annotation", **parameters)
    ended.set()
    killer.join()
    assert code == 1, "the orchestrator's own Job is complete, the run is not"
    assert "step annotate_documents_1 of annotation" in printed
    assert 12 <= len(endpoint.requests) - before < len(DOCUMENTS)
    manifest = manifest_of(cluster.complete("annotation", **parameters), "annotate_documents_1")
    assert manifest.counts["scored"] == manifest.rows == len(DOCUMENTS)
    assert 0 <= len(endpoint.requests) - before - len(DOCUMENTS) <= 2 + 2
