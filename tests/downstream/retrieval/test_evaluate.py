"""Evaluation of search: figures against ranks that were counted by hand, and questions that an LLM writes."""

from __future__ import annotations

import json

import numpy as np
import pytest

from ml_filter.annotation.config import AskConfig
from ml_filter.config import Settings
from ml_filter.documents.config import SourceConfig
from ml_filter.downstream.retrieval.answers import evaluate_answers
from ml_filter.downstream.retrieval.config import RetrievalEvaluationConfig, SearchConfig
from ml_filter.downstream.retrieval.evaluate import _figures, evaluate_retrieval, write_questions
from ml_filter.errors import InputError
from tests.downstream.retrieval.conftest import source_of

CONFIG = RetrievalEvaluationConfig(resamples=200)


def test_figures_follow_from_ranks_and_intervals_of_differences_are_paired():
    # dense, bm25, hybrid, reranked; 0 is not found. Hybrid is one rank better than BM25 on every question.
    ranks = np.array([[1, 2, 1, 1], [2, 2, 1, 2], [0, 4, 3, 3], [1, 2, 1, 1]] * 10, np.float64)
    variants, comparisons = _figures(["dense", "bm25", "hybrid", "hybrid with maxsim"], ranks, ranks / 1000, CONFIG)
    dense, bm25, hybrid, _ = (variant.figures for variant in variants)
    assert dense["mrr"].value == pytest.approx((1 + 1 / 2 + 0 + 1) / 4)
    assert dense["hit_rate"].value == 0.75
    assert dense["ndcg"].value == pytest.approx((1 + 1 / np.log2(3) + 0 + 1) / 4)
    gains = {(c.first, c.second): c for c in comparisons}
    gain = gains["hybrid", "bm25"].differences["mrr"]
    assert gain.value == pytest.approx(hybrid["mrr"].value - bm25["mrr"].value)
    assert gain.low is not None and gain.low > 0
    assert gains["hybrid", "bm25"].verdict == "hybrid is better than bm25"
    assert gains["hybrid with maxsim", "dense"].verdict == "hybrid with maxsim is better than dense"
    assert gains["hybrid with maxsim", "hybrid"].verdict == "hybrid with maxsim is worse than hybrid"
    even = np.array([[1, 1, 2], [2, 2, 1]] * 10, np.float64)
    _, [against_dense, _] = _figures(["dense", "bm25", "hybrid"], even, even / 1000, CONFIG)
    assert against_dense.verdict == "no difference shown between hybrid and dense"


def test_questions_are_searched_in_every_way_and_the_result_is_kept(index_directory, tmp_path):
    rows = [("What does hydrogen fuse to?", "stars"), ("Where do rivers carry sand?", "rivers"), ("bread?", "gone")]
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps({"question": q, "document_id": d}) + "\n" for q, d in rows))
    settings = (SearchConfig(), CONFIG, tmp_path / "out")
    result, manifest = evaluate_retrieval(index_directory, source_of(path), *settings)
    assert [variant.name for variant in result.variants] == ["dense", "bm25", "hybrid", "hybrid with maxsim"]
    bm25 = result.variants[1].figures
    assert bm25["hit_rate"].value == pytest.approx(2 / 3)
    assert result.missed[-1].document_id == "gone"
    assert manifest.parents[0].path == str(index_directory)
    assert evaluate_retrieval(index_directory, source_of(path), *settings)[0] == result
    page = (tmp_path / "out" / "retrieval.html").read_text()
    assert all(verdict[1:] in page for verdict in result.verdicts)
    assert result.figures()["retrieval_bm25_hit_rate"] == pytest.approx(2 / 3)
    path.write_text('{"question": "x"}\n')
    with pytest.raises(InputError, match="has no column 'document_id'; questions need question and document_id"):
        evaluate_retrieval(index_directory, source_of(path), SearchConfig(), CONFIG, tmp_path / "other")


def test_an_llm_writes_questions_about_passages(index_directory, tmp_path, llm):
    server = llm(lambda body: json.dumps({"question": "What is this text about, in general?"}))
    config = AskConfig(endpoints=[server.url], model="m")
    manifest = write_questions(index_directory, 4, config, tmp_path, Settings(_env_file=None))
    assert manifest.counts["generated"] == len(server.bodies) == 4
    result, _ = evaluate_retrieval(
        index_directory, SourceConfig(paths=[manifest.root]), SearchConfig(rerank="none"), CONFIG, tmp_path / "out"
    )
    assert result.questions == 4


def test_answers_are_written_and_rated_from_their_sources_and_paid_for_once(index_directory, tmp_path, llm):
    path = tmp_path / "questions.jsonl"
    rows = [("hydrogen in stars", "stars"), ("sand in rivers", "rivers")]
    path.write_text("".join(json.dumps({"question": q, "document_id": d}) + "\n" for q, d in rows))

    def answer(body):
        asked = body["messages"][-1]["content"]
        if "Give a score" in asked:
            assert "Question: " in asked
            assert "\n\nAnswer: It shines [1].\n" in asked
            return json.dumps({"reason": "fine", "score": 2 if "support what the answer" in asked else 4})
        return json.dumps({"answer": "It shines [1][8]."})

    server = llm(answer)
    search = SearchConfig(mode="bm25", rerank="none", min_similarity=-1)
    ask = AskConfig(endpoints=[server.url], model="m")
    arguments = (index_directory, source_of(path), 5, search, CONFIG, ask, tmp_path / "out", Settings(_env_file=None))
    ratings, counts = evaluate_answers(*arguments)
    assert counts == {"answered": 2, "without_context": 0, "without_answer": 0, "ratings_failed": 0}
    assert {name: figure.value for name, figure in ratings.items()} == {
        "answer_faithfulness": 2,
        "answer_relevancy": 4,
        "context_precision": 4,
        "context_recall": 4,
    }
    assert len(server.bodies) == 2 + 2 * 4
    assert evaluate_answers(*arguments) == (ratings, counts)
    assert len(server.bodies) == 10
