"""Pipelines with every step in a box of its own: nothing is shared but object storage and the ZenML server."""

from __future__ import annotations

import json

import pytest
import yaml

from tests.production.conftest import BUCKET, aws_client

DOCUMENTS = [{"id": f"d{n}", "text": f"Water boils at {n} degrees. " * (1 + n % 3), "label": n % 5} for n in range(12)]


@pytest.fixture(scope="module")
def corpus(cloud) -> list[str]:
    """Two files with documents; their URLs."""
    lines = [json.dumps(row) + "\n" for row in DOCUMENTS]
    for number, part in enumerate((lines[:6], lines[6:])):
        aws_client(cloud, "s3").put_object(Bucket=BUCKET, Key=f"corpus/{number}.jsonl", Body="".join(part).encode())
    return [f"s3://{BUCKET}/corpus/{number}.jsonl" for number in range(2)]


@pytest.fixture
def config(tmp_path):
    """Write the file of a pipeline, whose orchestrator looks often."""

    def write(stack, output, **parameters):
        parameters = {"output": f"s3://{BUCKET}/{output}", "tracking": {"mode": "off"}, **parameters}
        settings = {"orchestrator.kubernetes": {"job_monitoring_interval": 0.2}} if stack == "kubernetes" else {}
        content = {"parameters": parameters, "settings": settings, "model": {"name": "tested_head"}}
        path = tmp_path / "pipeline.yaml"
        path.write_text(yaml.safe_dump(content))
        return ["--stack", stack, "--config", str(path)]

    return write


def training(corpus):
    return {"labels": {"paths": corpus}, "train": {"kind": "hashing", "label_column": "label"}}


def scoring(corpus):
    return {"source": {"paths": corpus}, "head": "zenml:tested_head@1", "filter": {"min_score": 0}}


def test_on_sagemaker_a_head_is_trained_and_scores_a_corpus(corpus, config, run, aws_stack, sagemaker):
    for pipeline, parameters in (("training", training(corpus)), ("scoring", scoring(corpus))):
        code, printed = run(pipeline, *config("aws", "aws", **parameters))
        assert code == 0
        assert "not finished. Watch it at http://127.0.0.1" in printed
        result = sagemaker.run()
        assert not any(result.codes.values()), [box.log for box in result.boxes.values()]


def test_on_kubernetes_a_head_is_trained(corpus, config, run, kubernetes_stack, kubernetes):
    code, printed = run("training", *config("kubernetes", "kubernetes", **training(corpus)))
    assert code == 0, printed
    assert "completed in" in printed
