"""The retrieval pipeline on a few documents."""

from __future__ import annotations

import json

import pytest

pytestmark = [pytest.mark.zenml, pytest.mark.filterwarnings("ignore")]  # ZenML's own warnings


def test_documents_are_indexed_and_their_search_is_evaluated(run, tmp_path, documents, small_encoder):
    from zenml.client import Client

    rows = [{"id": row["id"], "text": row["text"][:600]} for row in documents[:12]]
    asked = [
        {"question": f"What is said about {row['id'].partition('/')[2]}?", "document_id": row["id"]} for row in rows
    ]
    for name, content in (("documents", rows), ("questions", asked)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    arguments = [
        f"source.paths=['{tmp_path}/documents.jsonl']",
        f"questions.paths=['{tmp_path}/questions.jsonl']",
        "generate=null",
        f"index={{encoder: '{small_encoder}', engine: torch}}",
        f"output={tmp_path}/runs",
    ]
    code, printed = run("retrieval", *arguments)
    assert code == 0, printed
    latest = next(iter(Client().list_pipeline_runs(size=1, sort_by="desc:created")))
    steps = Client().get_pipeline_run(latest.id).steps
    assert {*steps} == {"index_documents", "evaluate_retrieval", "track_retrieval"}
    index = steps["index_documents"].outputs["index"][0].load()
    assert index.counts["read"] == 12
    evaluation = steps["evaluate_retrieval"].outputs["retrieval"][0].load()
    assert evaluation.parents[0].digest == index.digest
    assert "questions on" in steps["evaluate_retrieval"].outputs["retrieval_report"][0].load()
    code, printed = run("retrieval", *arguments[:2], f"output={tmp_path}/runs")
    assert code == 2
    assert "set either questions, or generate to let the LLM write them" in printed
