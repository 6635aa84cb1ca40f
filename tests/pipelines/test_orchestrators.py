"""Exit codes of pipelines whose orchestrator runs the steps elsewhere."""

import json

import pytest

pytestmark = [pytest.mark.zenml, pytest.mark.filterwarnings("ignore")]  # ZenML's own warnings


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
    code, printed = run("scoring", f"head={tmp_path}", f"source.paths=['{tmp_path}']", "filter.min_score=3")
    assert code == 0
    assert "not finished. Watch it in the dashboard" in printed
    assert "zenml pipeline runs refresh" in printed
