"""The serving pipeline, deployed by ZenML's local deployer on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from ml_filter.documents.config import SourceConfig
from ml_filter.heads.config import TrainConfig
from ml_filter.heads.engine import load_engine
from ml_filter.heads.train import train_head
from ml_filter.scoring.config import ScoreConfig
from ml_filter.serving.documents import Document, score_document
from tools.deploy import main

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def run(tmp_path):
    """Run Python in a ZenML store of the test's own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ZENML")}
    environment = {**kept, "ZENML_CONFIG_PATH": str(tmp_path / "zenml"), "ZENML_ANALYTICS_OPT_IN": "false"}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *arguments]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

    return run


@pytest.fixture
def head(documents, tmp_path) -> str:
    path = tmp_path / "labelled.jsonl"
    path.write_text("".join(json.dumps({**row, "label": i % 5}) + "\n" for i, row in enumerate(documents)))
    config = TrainConfig(engine="hashing", label_column="label")
    return train_head(SourceConfig(paths=[str(path)]), config, tmp_path / "head").directory


def test_a_deployment_scores_single_documents_with_a_head_that_it_loads_once(run, head, documents):
    try:
        deployed = run("-m", "tools.deploy", f"head={head}", "--name", "test")
        assert deployed.returncode == 0, deployed.stderr[-3000:]
        url = deployed.stdout.splitlines()[-1].split(" runs at ")[1].split(";")[0]
        engine = load_engine(head, ScoreConfig())
        for text in (documents[0]["text"], "Größe, 大きさ", " "):
            answer = httpx.post(f"{url}/invoke", json={"parameters": {"text": text}}, timeout=120).json()
            assert answer["success"], answer["error"]
            assert answer["outputs"] == {
                "scored_document": score_document(engine, Document(text=text)).model_dump(mode="json")
            }
    finally:
        deleted = run(str(Path(sys.executable).with_name("zenml")), "deployment", "delete", "test", "--yes")
    assert deleted.returncode == 0, deleted.stderr[-3000:]
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/health")


def test_a_head_that_is_none_is_not_deployed(tmp_path, capsys):
    assert main([f"head={tmp_path}"]) == 2
    assert f"{tmp_path} holds no trained head" in capsys.readouterr().err
