"""Searching: conditions, duplicates, thresholds and reranking."""

from __future__ import annotations

import json

import pytest
import torch
from pydantic import ValidationError

from ml_filter.downstream.retrieval.config import SearchConfig, Where
from ml_filter.downstream.retrieval.index import build_index, open_index
from ml_filter.downstream.retrieval.search import Searcher
from ml_filter.errors import ConfigError
from tests.downstream.retrieval.conftest import TEXTS, source_of

BY_WORDS = {"mode": "bm25", "rerank": "none", "min_similarity": -1}


def found(index, question, **settings):
    results = Searcher(index, SearchConfig.model_validate(BY_WORDS | settings)).search(question)
    return [result.document_id for result in results]


def test_words_find_their_document_and_the_whole_parent(opened):
    searcher = Searcher(opened, SearchConfig.model_validate(BY_WORDS))
    [first, *_] = searcher.search("What is hydrogen fused to?")
    assert first.document_id == "stars"
    assert first.passage in first.context == TEXTS["stars"]
    assert first.url == "https://example.org/stars"
    assert first.columns == {"url": "https://example.org/stars", "language": "en", "score": 5.0}


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (["score>=5"], {"stars"}),
        (["score<4"], {"cells"}),
        (["score=3,5"], {"cells", "stars"}),
        (["score!=5"], {"cells", "evil"}),
        (["language=en", "document_id!=cells"], {"stars"}),
        (["language=de,fr"], {"evil"}),
        (["language=fr"], set()),
    ],
)
def test_conditions_keep_only_what_meets_them(opened, where, expected):
    assert set(found(opened, "cell facts and hydrogen", where=where)) == expected


def test_an_unknown_column_and_a_bad_condition_are_named(opened):
    with pytest.raises(ConfigError, match=r"no column 'langauge' \(for langauge==de\); it has url, language"):
        found(opened, "x", where=["langauge=de"])
    for text, problem in (("score", "is not a condition"), ("score>=high", ">= needs one number, not 'high'")):
        with pytest.raises(ValidationError, match=problem):
            Where.model_validate(text)
    with pytest.raises(ValidationError, match="rerank cross_encoder needs a model"):
        SearchConfig(rerank="cross_encoder")
    with pytest.raises(ValidationError, match="cross_encoder is not used"):
        SearchConfig(cross_encoder="x")


def test_copies_of_a_text_and_passages_of_one_parent_are_shown_once(config, tmp_path):
    rows = [{"id": f"copy{n}", "text": "Permission is hereby granted, free of charge."} for n in range(20)]
    long = " ".join(f"Sentence {n} grants permission." for n in range(8))
    path = tmp_path / "licences.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"id": "long", "text": long}]))
    build_index(source_of(path), config(), tmp_path / "index")
    with open_index(tmp_path / "index") as index:
        ids = found(index, "permission granted", limit=20)
    assert len(ids) == 2
    assert "long" in ids


def test_nothing_is_found_if_nothing_is_similar(opened):
    everything = SearchConfig(rerank="none", min_similarity=-1)
    best = max(result.similarity for result in Searcher(opened, everything).search("stars"))
    for margin, expected in ((-0.001, True), (0.001, False)):
        least = min(1.0, best + margin)
        config = everything.model_copy(update={"min_similarity": least})
        assert bool(Searcher(opened, config).search("stars")) == expected


def test_max_sim_prefers_the_text_with_the_tokens_of_the_question(opened):
    texts = ["Rivers carve valleys.", "hydrogen fuses to helium", "Knead the dough."]
    scores = opened.encoder.max_sim("hydrogen fuses to helium", texts)
    assert max(scores) == scores[1] == pytest.approx(1, abs=1e-3)
    assert opened.encoder.max_sim("", texts) == [0, 0, 0]


def test_a_cross_encoder_orders_the_candidates(opened, small_encoder, tmp_path):
    from transformers import AutoTokenizer, BertForSequenceClassification

    from tests.small import small_bert

    torch.manual_seed(1)
    shape = small_bert()
    shape.num_labels = 1
    BertForSequenceClassification(shape).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(small_encoder).save_pretrained(tmp_path)
    settings = {**BY_WORDS, "rerank": "cross_encoder", "cross_encoder": str(tmp_path)}
    results = Searcher(opened, SearchConfig.model_validate(settings)).search("cell facts and hydrogen")
    assert len(results) == 3
    assert [result.score for result in results] == sorted((result.score for result in results), reverse=True)
    with pytest.raises(ConfigError, match="cannot load the cross-encoder"):
        Searcher(opened, SearchConfig.model_validate({**settings, "cross_encoder": str(tmp_path / "none")}))
