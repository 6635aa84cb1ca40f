"""What holds for every set of votes, through the files that the commands read and write."""

import random
import tempfile
from pathlib import Path
from statistics import fmean, pstdev

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_filter.agreement.aggregate import METHODS, aggregate_annotations
from ml_filter.documents.manifest import Manifest
from ml_filter.documents.output import OutputDirectory
from ml_filter.documents.schema import ANNOTATION_SCHEMA
from ml_filter.errors import InputError
from ml_filter.settings import AggregateConfig

Vote = tuple[str, float | None]
"""A document and its score; None is a failed vote."""

VOTES = st.lists(st.tuples(st.sampled_from("xyz"), st.none() | st.integers(0, 10).map(lambda n: n / 2)), max_size=12)
METHOD = st.sampled_from(sorted(METHODS))


def annotations(directory: Path, votes: list[Vote], criterion: str = "quality") -> Path:
    rows = [
        {
            **dict.fromkeys(ANNOTATION_SCHEMA.names),
            "document_id": document,
            "annotator": "m",
            "prompt": "p",
            "prompt_digest": "0",
            "vote": number,
            "status": "failed" if score is None else "scored",
            "score": score,
            "error": "timeout" if score is None else None,
        }
        for number, (document, score) in enumerate(votes)
    ]
    with OutputDirectory(directory, "annotations", {"criterion": criterion, "score_range": [0, 5]}, []) as out:
        with out.new_shard("a", ANNOTATION_SCHEMA) as writer, out.new_rejects("a") as rejects:
            writer.write(pa.Table.from_pylist(rows, schema=ANNOTATION_SCHEMA))
        out.finish([("a", out.commit("a", writer, rejects, {}))])
    return directory


def table(manifest: Manifest) -> dict[tuple[str, str], dict]:
    rows = pq.read_table(manifest.shard_paths()[0]).to_pylist()
    return {(row["document_id"], row["criterion"]): row for row in rows}


def aggregated(votes: list[Vote], method: str) -> dict[str, dict]:
    with tempfile.TemporaryDirectory() as directory:
        source = annotations(Path(directory) / "a", votes)
        made = aggregate_annotations([source], AggregateConfig(method=method), Path(directory) / "out")
        return {document: row for (document, _), row in table(made).items()}


@settings(max_examples=25, deadline=None)
@given(VOTES, METHOD, st.randoms(use_true_random=False))
def test_the_order_of_votes_changes_nothing(votes, method, order):
    shuffled = order.sample(votes, len(votes))
    assert aggregated(shuffled, method) == aggregated(votes, method)


@settings(max_examples=25, deadline=None)
@given(VOTES, METHOD)
def test_failed_votes_never_change_a_score(votes, method):
    with_failures, without = aggregated(votes, method), aggregated([v for v in votes if v[1] is not None], method)
    for document, row in with_failures.items():
        counting = [score for name, score in votes if name == document and score is not None]
        if counting:
            assert {**row, "failed_votes": 0} == without[document]
            assert min(counting) <= row["score"] <= max(counting)
            assert row["disagreement"] == pytest.approx(pstdev(counting))
        else:
            assert document not in without
            assert (row["score"], row["disagreement"]) == (None, None)
        assert row["votes"] == len(counting)
        assert row["votes"] + row["failed_votes"] == sum(name == document for name, _ in votes)


@given(st.lists(st.floats(0, 5), min_size=1, max_size=9))
def test_methods_stand_in_their_order(votes):
    low, high = METHODS["min"](votes), METHODS["max"](votes)
    assert low == min(votes)
    assert high == max(votes)
    for method in ("mean", "median", "majority"):
        assert low - 1e-9 <= METHODS[method](votes) <= high + 1e-9


@given(st.floats(0, 5), st.integers(1, 5), METHOD)
def test_votes_that_agree_give_what_they_agree_on(score, count, method):
    assert METHODS[method]([score] * count) == pytest.approx(score)


def test_a_jury_of_directories_is_one_set_of_votes_in_any_order(tmp_path):
    a = annotations(tmp_path / "a", [("x", 1.0), ("y", 2.0)])
    b = annotations(tmp_path / "b", [("x", 4.0), ("z", None)])
    c = annotations(tmp_path / "c", [("x", 4.0)])
    one = aggregate_annotations([a, b, c], AggregateConfig(), tmp_path / "one")
    other = aggregate_annotations([c, b, a], AggregateConfig(), tmp_path / "other")
    assert table(one) == table(other)
    assert table(one)["x", "quality"]["score"] == fmean([1.0, 4.0, 4.0])
    assert one.counts["votes"] == 4
    assert one.counts["failed_votes"] == 1
    assert [parent.path for parent in one.parents] == [str(a), str(b), str(c)]


def test_criteria_are_kept_apart(tmp_path):
    a = annotations(tmp_path / "a", [("x", 1.0)])
    b = annotations(tmp_path / "b", [("x", 4.0)], criterion="danger")
    made = aggregate_annotations([a, b], AggregateConfig(method="max"), tmp_path / "out")
    assert {key: row["score"] for key, row in table(made).items()} == {("x", "quality"): 1.0, ("x", "danger"): 4.0}


def test_done_again_it_is_the_same_and_another_method_is_refused_the_directory(tmp_path):
    votes = [("x", random.Random(seed).uniform(0, 5)) for seed in range(5)]
    source = annotations(tmp_path / "a", votes)
    first = aggregate_annotations([source], AggregateConfig(), tmp_path / "out")
    assert aggregate_annotations([source], AggregateConfig(), tmp_path / "out") == first
    with pytest.raises(InputError, match="other settings"):
        aggregate_annotations([source], AggregateConfig(method="median"), tmp_path / "out")
