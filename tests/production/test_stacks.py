"""Registering stacks on a ZenML server."""

from tests.production.conftest import BUCKET
from tools.stack import main

OPTIONS = ["--name=second", f"--bucket={BUCKET}", "--execution-role=arn:steps", "--registry=1.dkr.ecr.example.com"]


def test_a_second_registration_changes_only_what_differs_and_deletion_leaves_nothing(store, capsys):
    def change(*arguments):
        assert main(["aws", *OPTIONS, *arguments]) == 0
        return [line for line in capsys.readouterr().out.splitlines() if "second" in line]

    def everything():
        from zenml.client import Client

        return {(item.type, item.name) for item in Client().list_stack_components(size=100)}

    before = everything()
    created = change("--region=eu-central-1", "--scheduler-role=arn:schedules")
    assert [line.split()[0] for line in created] == ["created"] * 5 + ["active"]
    again = change("--region=eu-central-1", "--scheduler-role=arn:schedules")
    assert [line.split()[0] for line in again] == ["unchanged"] * 4 + ["active"]
    changed = change("--region=us-east-1")
    assert changed[0] == "updated orchestrator second (sagemaker): scheduler_role, region"
    assert [line.split()[0] for line in changed[1:]] == ["unchanged"] * 3 + ["active"]
    assert change("--region=us-east-1")[0] == "unchanged orchestrator second (sagemaker)"
    deleted = change("--delete")
    assert [line.split()[0] for line in deleted] == ["deleted"] * 5
    assert everything() == before
