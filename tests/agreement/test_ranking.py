"""The next documents to annotate: which come first, and that they are a source of documents."""

import json
import math

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from loguru import logger
from scipy.stats import norm

from ml_filter.agreement import ranking
from ml_filter.agreement.aggregate import aggregate_annotations
from ml_filter.agreement.config import AggregateConfig, RankConfig
from ml_filter.agreement.ranking import rank_documents, wrong_decision
from ml_filter.documents.config import SourceConfig
from ml_filter.documents.readers import read_shard
from ml_filter.documents.rejects import RejectsLog
from ml_filter.documents.sources import list_shards
from ml_filter.errors import InputError
from tests.written import prompt, write_annotations

VOTES = {"agreed": (4, 4, 4), "split": (0, 5, 5), "near": (3, 3, 2), "far": (0, 0, 1), "failed": (None, None, None)}


@pytest.fixture
def pages(tmp_path):
    path = tmp_path / "pages.jsonl"
    rows = [{"id": name, "text": f"a page that is {name}", "url": f"https://example.org/{name}"} for name in VOTES]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def several_annotators(tmp_path, pages, method="mean"):
    """Scores of three annotators' votes."""
    sources = [
        write_annotations(
            tmp_path / f"annotator{n}", [(d, v[n]) for d, v in VOTES.items()], f"annotator{n}", source=pages
        )
        for n in range(3)
    ]
    return aggregate_annotations(sources, AggregateConfig(method=method), tmp_path / f"scores-{method}").root


def ranked(manifest):
    return pq.read_table(manifest.shard_paths()[0]).to_pylist()


def rejected(manifest):
    with open(manifest.path_of("rejects.jsonl")) as file:
        return [json.loads(line) for line in file]


def test_documents_with_the_most_disagreement_come_first(tmp_path, pages):
    manifest = rank_documents(several_annotators(tmp_path, pages), RankConfig(size=3), tmp_path / "next")
    rows = ranked(manifest)
    assert [(row["rank"], row["id"]) for row in rows] == [(1, "split"), (2, "far"), (3, "near")]
    assert rows[0]["rank_value"] == pytest.approx(np.std([0, 5, 5]))
    assert (manifest.kind, manifest.counts["ranked"], manifest.counts["scored"]) == ("documents", 3, 4)


def test_ties_in_disagreement_are_logged(tmp_path, pages):
    logged = []
    sink = logger.add(logged.append, level="WARNING", format="{message}")
    single = write_annotations(tmp_path / "a", [("near", 3.0), ("agreed", 4.0)], source=pages)
    scores = aggregate_annotations([single], AggregateConfig(), tmp_path / "single")
    rank_documents(scores.root, RankConfig(size=2), tmp_path / "single-next")
    rank_documents(several_annotators(tmp_path, pages), RankConfig(size=4), tmp_path / "next")
    rank_documents(tmp_path / "scores-mean", RankConfig(size=3), tmp_path / "fewer")
    by_value = RankConfig(size=2, by="expected-value")
    manifest = rank_documents(scores.root, by_value, tmp_path / "valued")
    logger.remove(sink)
    assert [str(line).partition(" documents")[0] for line in logged] == [
        "only 0 of the 2 ranked",
        "only 3 of the 4 ranked",
    ]
    assert "Annotate with more votes or annotators and aggregate again, or rank --by expected-value" in logged[0]
    assert [row["id"] for row in ranked(manifest)] == ["near", "agreed"]  # not as the alphabet has it


@pytest.mark.parametrize("method", ["mean", "dawid-skene"])
def test_by_expected_value_the_most_uncertain_decisions_come_first(method, tmp_path, pages):
    config = RankConfig(size=4, by="expected-value")  # with the threshold of the criterion, 3
    rows = ranked(rank_documents(several_annotators(tmp_path, pages, method), config, tmp_path / "next"))
    order = [row["id"] for row in rows]
    assert all(0 <= row["rank_value"] <= 0.5 for row in rows)
    assert order.index("near") < order.index("agreed")
    assert order.index("split") < order.index("far")
    elsewhere = RankConfig(size=4, by="expected-value", threshold=0.5)
    assert ranked(rank_documents(tmp_path / f"scores-{method}", elsewhere, tmp_path / "low"))[0]["id"] == "far"


def test_documents_without_a_score_are_rejects(tmp_path, pages):
    manifest = rank_documents(several_annotators(tmp_path, pages), RankConfig(size=10), tmp_path / "next")
    assert "failed" not in {row["id"] for row in ranked(manifest)}
    assert [(row["place"], row["reason"]) for row in rejected(manifest)] == [("failed", "no_score")]
    assert manifest.counts["rejected_no_score"] == 1


def test_ranked_documents_keep_their_columns(tmp_path, pages):
    manifest = rank_documents(several_annotators(tmp_path, pages), RankConfig(size=2), tmp_path / "next")
    source = SourceConfig(paths=[manifest.root])
    [table] = [t for shard in list_shards(source)[0] for t in read_shard(shard, source, RejectsLog())]
    assert table.column_names == ["id", "text", "url", "rank", "rank_value"]
    assert table["text"].to_pylist() == ["a page that is split", "a page that is far"]
    again = rank_documents(tmp_path / "scores-mean", RankConfig(size=1), tmp_path / "again", source)
    assert [row["id"] for row in ranked(again)] == ["split"]  # a ranked list can be ranked
    assert ranked(again)[0]["rank"] == 1


def test_order_holds_across_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(ranking, "_BLOCK", 7)
    pages = tmp_path / "pages.jsonl"
    pages.write_text("".join(json.dumps({"id": f"d{n:02}", "text": f"page {n}"}) + "\n" for n in range(40)))
    votes = [(f"d{n:02}", score) for n in range(40) for score in (0, n * 17 % 40 / 8)]
    scores = aggregate_annotations(
        [write_annotations(tmp_path / "a", votes, source=pages)], AggregateConfig(), tmp_path / "scores"
    )
    rows = ranked(rank_documents(scores.root, RankConfig(size=30), tmp_path / "next"))
    assert [row["rank"] for row in rows] == list(range(1, 31))
    assert [row["rank_value"] for row in rows] == sorted((n / 16 for n in range(10, 40)), reverse=True)


def test_criterion_must_be_chosen_if_there_are_several(tmp_path, pages):
    votes = [("split", 1, None, "quality"), ("split", 1, None, "danger"), ("split", 5, None, "danger")]
    source = write_annotations(tmp_path / "a", votes, asked=[prompt(), prompt("danger")], source=pages)
    scores = aggregate_annotations([source], AggregateConfig(), tmp_path / "scores").root
    with pytest.raises(InputError, match="has scores of danger, quality; choose one with --criterion"):
        rank_documents(scores, RankConfig(size=1), tmp_path / "next")
    with pytest.raises(InputError, match="has no scores of 'style'; it has danger, quality"):
        rank_documents(scores, RankConfig(size=1, criterion="style"), tmp_path / "next")
    [row] = ranked(rank_documents(scores, RankConfig(size=1, criterion="danger"), tmp_path / "next"))
    assert row["rank_value"] == 2


def test_missing_documents_are_rejects_or_an_error(tmp_path, pages):
    without_text = write_annotations(tmp_path / "a", [("split", 1.0), ("nowhere", 2.0)])
    scores = aggregate_annotations([without_text], AggregateConfig(), tmp_path / "scores").root
    with pytest.raises(InputError, match="scores without text; name their documents with --documents"):
        rank_documents(scores, RankConfig(size=2), tmp_path / "next")
    manifest = rank_documents(scores, RankConfig(size=2), tmp_path / "next", SourceConfig(paths=[str(pages)]))
    assert [row["id"] for row in ranked(manifest)] == ["split"]
    assert [(row["place"], row["reason"]) for row in rejected(manifest)] == [("nowhere", "no_document")]
    other = tmp_path / "other.jsonl"
    other.write_text('{"id": "else", "text": "another page"}\n')
    with pytest.raises(InputError, match="none of the 2 ranked documents is in"):
        rank_documents(scores, RankConfig(size=2), tmp_path / "never", SourceConfig(paths=[str(other)]))


@given(st.floats(0, 5), st.integers(1, 9), st.floats(0, 2.5), st.floats(0, 5))
def test_decision_is_most_uncertain_at_the_threshold(score, votes, spread, threshold):
    scores = np.array([score, threshold, score + 0.5 * np.sign(score - threshold)])
    wrong, at, farther = wrong_decision(scores, np.full(3, votes), np.full(3, spread if votes > 1 else 0.0), threshold)
    assert 0 <= farther <= wrong <= at == 0.5


def test_single_vote_has_the_pooled_variance():
    # Two votes a document, one point apart: a variance of 0.5 within documents.
    scores, votes, spread = [2.0] + [2.5] * 30, [1] + [2] * 30, [0.0] + [0.5] * 30
    (single, *_) = wrong_decision(np.array(scores), np.array(votes), np.array(spread), 3.0)
    assert single == pytest.approx(norm.sf(1 / math.sqrt(0.5)))


def test_decisions_are_wrong_as_often_as_predicted():
    random = np.random.default_rng(0)
    truth, votes = random.normal(2.5, 3, 20_000), random.integers(1, 5, 20_000)
    given = [t + random.normal(0, 1, n) for t, n in zip(truth, votes, strict=True)]
    scores, spread = np.array([one.mean() for one in given]), np.array([one.std() for one in given])
    wrong = wrong_decision(scores, votes, spread, 3.0)
    erred = (scores >= 3) != (truth >= 3)
    for count in range(1, 5):
        assert wrong[votes == count].mean() == pytest.approx(erred[votes == count].mean(), abs=0.012)


def test_more_votes_make_a_decision_more_certain():
    few, many = wrong_decision(np.array([3.5, 3.5]), np.array([2, 20]), np.array([1.0, 1.0]), 3.0)
    assert many < few
