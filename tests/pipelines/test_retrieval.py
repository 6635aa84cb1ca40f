"""The retrieval pipeline on a few documents."""

from __future__ import annotations

import json

import pytest

from tests.downstream.retrieval.llm import running

pytestmark = [pytest.mark.zenml, pytest.mark.filterwarnings("ignore")]  # ZenML's own warnings


def test_documents_are_indexed_and_their_search_and_answers_are_evaluated(run, tmp_path, documents, small_encoder):
    from zenml.client import Client

    def reply(body):
        is_rating = "Give a score" in body["messages"][-1]["content"]
        return '{"reason": "fine", "score": 3}' if is_rating else "It is described [1]."

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
    with running(reply) as server:
        answering = [
            "evaluate.answers=3",
            "search.min_similarity=-1",
            f"ask={{endpoints: ['{server.url}'], model: m}}",
        ]
        code, printed = run("retrieval", *arguments, *answering)
    assert code == 0, printed
    latest = next(iter(Client().list_pipeline_runs(size=1, sort_by="desc:created")))
    steps = Client().get_pipeline_run(latest.id).steps
    assert {*steps} == {"index_documents", "evaluate_retrieval", "track_retrieval"}
    index = steps["index_documents"].outputs["index"][0].load()
    assert index.counts["read"] == 12
    evaluation = steps["evaluate_retrieval"].outputs["retrieval"][0].load()
    assert evaluation.parents[0].digest == index.digest
    page = steps["evaluate_retrieval"].outputs["retrieval_report"][0].load()
    assert "questions on" in page
    assert "3 of 3 questions were answered" in page
    figures = steps["evaluate_retrieval"].run_metadata["figures"]
    assert figures["retrieval_answer_faithfulness"] == 3
    code, printed = run("retrieval", *arguments[:2], f"output={tmp_path}/runs")
    assert code == 2
    assert "set either questions, or generate to let the LLM write them" in printed
