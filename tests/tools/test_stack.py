"""Registering a stack and deleting it: options, and a ZenML store before and after."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ml_filter import extras
from tests.pipelines.conftest import store  # noqa: F401 - a fixture
from tools import stack
from tools.stack import main

ROOT = Path(__file__).resolve().parents[2]
AWS = ["--region=eu-central-1", "--bucket=corpora", "--execution-role=arn:steps", "--registry=1.dkr.ecr.example.com"]


@pytest.fixture
def change(capsys):
    """Run a stack task; returns the exit code and what it printed."""

    def run(*arguments):
        code = main(arguments)
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return run


def test_a_missing_option_is_named_with_its_variable(change, monkeypatch):
    monkeypatch.setenv("ML_FILTER_STACK_REGION", "eu-central-1")
    code, printed = change("aws")
    assert code == 2
    assert printed.startswith("error: --bucket is not set")
    assert "ML_FILTER_STACK_BUCKET" in printed


def test_an_artifact_store_that_other_machines_cannot_reach_is_refused(change):
    code, printed = change("aws", *AWS, "--artifact-store=artifacts")
    assert code == 2
    assert "--artifact-store artifacts: not a URL of object storage (s3://, gs://, az://, abfs://)" in printed


def test_a_missing_package_is_one_line_with_the_command_that_installs_it(change, monkeypatch):
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == "sagemaker" else True)
    code, printed = change("aws", *AWS)
    assert (code, printed) == (
        2,
        "error: the stack needs sagemaker; install the extra aws with `make setup EXTRAS=aws`\n",
    )


def test_several_missing_packages_are_told_at_once(change, monkeypatch):
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    code, printed = change(
        "kubernetes", "--context=c", "--namespace=n", "--registry=r.example.com", "--artifact-store=gs://bucket/zenml"
    )
    assert code == 2
    assert 'kubernetes, gcsfs; install the extras kubernetes gcs with `make setup EXTRAS="kubernetes gcs"`' in printed


@pytest.mark.parametrize("name", ["local", "aws", "kubernetes"])
def test_help_has_an_example(name, capsys):
    with pytest.raises(SystemExit):
        main([name, "--help"])
    assert f"example: poetry poe stack-{name}" in capsys.readouterr().out


@pytest.mark.zenml
@pytest.mark.filterwarnings("ignore")  # ZenML's own
def test_the_local_stack_comes_and_goes(store, tmp_path):  # noqa: F811
    # In a separate process: in this one, earlier tests have left stacks and log levels behind.
    calls = ["--name=laptop"], ["--name=laptop"], *[["--name=laptop", "--delete"]] * 2, ["--name=default", "--delete"]
    script = tmp_path / "stacks.py"
    lines = [f"print('exit code', main(['local', *{call!r}]), flush=True)" for call in calls]
    script.write_text("\n".join(["from tools.stack import main", *lines]))
    process = subprocess.run(
        [sys.executable, script],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    created, repeated, deleted, absent, default = re.split(r"exit code \d\n", process.stdout)[:5]
    assert re.findall(r"exit code (\d)\n", process.stdout) == ["0", "0", "0", "0", "2"]
    assert {"created stack laptop", "active stack: laptop"} <= set(created.splitlines())
    assert "active stack: laptop" in repeated.splitlines()
    assert "created" not in repeated
    assert {"active stack: default", "deleted stack laptop"} <= set(deleted.splitlines())
    assert absent.startswith("nothing to delete")
    assert "error: the stack default belongs to ZenML" in default.splitlines()


@pytest.mark.zenml
@pytest.mark.filterwarnings("ignore")
def test_steps_on_other_machines_need_a_server(store, change):  # noqa: F811
    code, printed = change("aws", *AWS)
    assert code == 2
    assert "connect to a server: zenml login URL" in printed


# --- deploy/ ---------------------------------------------------------------------------------------------------------


def test_the_options_that_terraform_prints_are_those_of_the_task():
    outputs = (ROOT / "deploy/aws/outputs.tf").read_text()
    [options] = re.findall(r'value\s+= "(--region .*)"', outputs)
    given = shlex.split(re.sub(r"\$\{[^}]*\}", "x", options))
    known = {f"--{option.name}": option.required for option in stack.STACKS["aws"].options}
    assert {name for name, is_required in known.items() if is_required} <= {*given[::2]} <= {*known}


def test_what_terraform_refers_to_is_declared():
    text = "\n".join(path.read_text() for path in (ROOT / "deploy/aws").glob("*.tf"))
    declared = {f"{kind}.{name}" for kind, name in re.findall(r'^resource "(\w+)" "(\w+)"', text, re.M)}
    declared |= {f"data.{kind}.{name}" for kind, name in re.findall(r'^data "(\w+)" "(\w+)"', text, re.M)}
    declared |= {f"var.{name}" for name in re.findall(r'^variable "(\w+)"', text, re.M)}
    used = set(re.findall(r"(?<![\w.])(?:data\.aws_\w+\.\w+|aws_\w+\.\w+|var\.\w+)", text))
    assert used == declared - {"aws_ecr_lifecycle_policy.image"} - {
        name for name in declared if name.startswith("aws_s3_bucket_") or "_role_policy." in name
    }


def test_the_manifests_fit_the_schemas_and_the_accounts_are_those_of_the_run_configuration():
    import kubernetes_validate

    base = ROOT / "deploy/kubernetes/base"
    resources = yaml.safe_load((base / "kustomization.yaml").read_text())["resources"]
    items = [item for name in resources for item in yaml.safe_load_all((base / name).read_text())]
    for item in items:
        kubernetes_validate.validate(item, "1.37", strict=True)
    settings = yaml.safe_load((ROOT / "configs/stacks/kubernetes.yaml").read_text())["settings"]
    orchestrator = settings["orchestrator.kubernetes"]
    accounts = {item["metadata"]["name"] for item in items if item["kind"] == "ServiceAccount"}
    assert {orchestrator["service_account_name"], orchestrator["step_pod_service_account_name"]} <= accounts
    overlay = yaml.safe_load((ROOT / "deploy/kubernetes/overlays/example/kustomization.yaml").read_text())
    [secret] = overlay["secretGenerator"]
    assert orchestrator["pod_settings"]["env_from"][0]["secretRef"]["name"] == secret["name"]
