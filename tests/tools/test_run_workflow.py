"""The workflow that starts a pipeline: its inputs are arguments, and nothing in them is run."""

import os
import subprocess
from pathlib import Path

import yaml

from tools.run import PIPELINES

WORKFLOW = Path(__file__).resolve().parents[2] / ".github/workflows/run-pipeline.yml"


def test_inputs_become_arguments_and_are_not_run(tmp_path):
    content = yaml.safe_load(WORKFLOW.read_text())
    inputs = content[True]["workflow_dispatch"]["inputs"]  # YAML 1.1 reads `on` as true
    assert set(inputs["pipeline"]["options"]) >= {*PIPELINES}
    steps = content["jobs"]["run"]["steps"]
    assert not [step for step in steps if "${{" in step.get("run", "")]
    for name, body in {
        "bin/aws": "echo the-key",
        ".venv/bin/python": 'printf "%s\\n" "$ZENML_STORE_API_KEY" "$@" > received',
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}/bin:{os.environ['PATH']}",
        "PIPELINE": "scoring",
        "STACK": "aws",
        "CONFIG": "$(touch ran).yaml",
        "OVERRIDES": "head=x source.paths='[\"a b\"]' $(touch ran) `touch ran`; touch ran",
        "ZENML_SECRET": "zenml",
    }
    script = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", steps[-1]["run"]]
    printed = subprocess.run(script, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout
    assert printed == "::add-mask::the-key\n"
    assert (tmp_path / "received").read_text().splitlines() == [
        "the-key",
        *["-m", "tools.run", "scoring", "--stack", "aws", "--config", "$(touch ran).yaml"],
        *["head=x", 'source.paths=["a b"]', "$(touch", "ran)", "`touch", "ran`;", "touch", "ran"],
    ]
    assert not (tmp_path / "ran").exists()
