"""Exit codes of pipelines whose orchestrator runs the steps elsewhere."""

import json

import pytest

pytestmark = [pytest.mark.zenml, pytest.mark.filterwarnings("ignore")]  # ZenML's own warnings


@pytest.fixture
def orchestrator(store):
    """Activate a stack with one of the orchestrators of tests/pipelines/orchestrators.py."""
    from zenml.client import Client
    from zenml.enums import StackComponentType

    def activate(name: str) -> None:
        client = Client()
        client.create_flavor(f"tests.pipelines.orchestrators.{name.title()}Flavor", StackComponentType.ORCHESTRATOR)
        client.create_stack_component(name, name, StackComponentType.ORCHESTRATOR, {})
        stack = client.create_stack(
            name, {StackComponentType.ORCHESTRATOR: name, StackComponentType.ARTIFACT_STORE: "default"}
        )
        client.activate_stack(stack.id)

    return activate


def test_a_run_that_fails_on_another_machine_ends_with_the_error_of_its_step(orchestrator, run, tmp_path):
    (tmp_path / "documents.jsonl").write_text(json.dumps({"text": "Water boils at 100 degrees."}) + "\n")
    orchestrator("waiting")
    code, printed = run(
        "scoring", f"head={tmp_path}", f"source.paths=['{tmp_path}/documents.jsonl']", "filter.min_score=3"
    )
    assert code == 2
    assert "step load_head of scoring" in printed
    assert "has no trained head" in printed


def test_a_submitted_run_is_reported_as_unfinished_with_the_way_to_watch_it(orchestrator, run, tmp_path):
    orchestrator("submitting")
    code, printed = run("scoring", f"head={tmp_path}", "source.paths=[documents.jsonl]", "filter.min_score=3")
    assert code == 0
    assert "not finished. Watch it in the dashboard" in printed
    assert "zenml pipeline runs refresh" in printed
