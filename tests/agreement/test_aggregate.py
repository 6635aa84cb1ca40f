"""From votes to scores, through the files that the commands read and write."""

import json
import random
import shutil
import tempfile
from pathlib import Path
from statistics import fmean, pstdev

import fsspec
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from ml_filter.agreement.aggregate import METHODS, aggregate_annotations, majority, read_reliability
from ml_filter.agreement.config import AggregateConfig
from ml_filter.cli import main
from ml_filter.criterion import Criterion
from ml_filter.documents.lineage import criteria_of
from ml_filter.documents.manifest import Manifest, read_manifest
from ml_filter.errors import InputError
from tests.written import DANGER, prompt, write_annotations

QUALITY = Criterion(name="quality", low=0, high=5, threshold=3)
UNIT = Criterion(name="quality", low=0, high=1, threshold=0.5)

VOTES = st.lists(st.tuples(st.sampled_from("xyz"), st.none() | st.integers(0, 10).map(lambda n: n / 2)), max_size=12)
SIMPLE = st.sampled_from(sorted(METHODS))


def scores(manifest: Manifest) -> dict[tuple[str, str], dict]:
    rows = pq.read_table(manifest.shard_paths()[0]).to_pylist()
    return {(row["document_id"], row["criterion"]): row for row in rows}


def aggregated(votes: list[tuple], method: str) -> dict[str, dict]:
    with tempfile.TemporaryDirectory() as directory:
        source = write_annotations(Path(directory) / "a", votes)
        manifest = aggregate_annotations([source], AggregateConfig(method=method), Path(directory) / "out")
        return {document: row for (document, _), row in scores(manifest).items()}


# --- what holds for every set of votes -------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(VOTES.filter(bool), SIMPLE, st.randoms(use_true_random=False))
def test_order_of_votes_does_not_matter(votes, method, order):
    assert aggregated(order.sample(votes, len(votes)), method) == aggregated(votes, method)


@settings(max_examples=15, deadline=None)
@given(VOTES.filter(lambda votes: any(score is not None for _, score in votes)), SIMPLE)
def test_failed_votes_are_counted_and_never_change_a_score(votes, method):
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
def test_every_method_stays_between_lowest_and_highest_vote(votes):
    low, high = METHODS["min"](votes), METHODS["max"](votes)
    assert (low, high) == (min(votes), max(votes))
    for method in ("mean", "median", "majority"):
        assert low - 1e-9 <= METHODS[method](votes) <= high + 1e-9


@given(st.floats(0, 5), st.integers(1, 5), SIMPLE)
def test_equal_votes_give_that_score(score, count, method):
    assert METHODS[method]([score] * count) == pytest.approx(score)


def test_majority_averages_ties():
    assert majority([1, 1, 4, 4, 2]) == 2.5
    assert majority([1, 4, 4]) == 4


# --- directories, juries and criteria --------------------------------------------------------------------------------


def test_expected_score_is_the_default_and_the_answer_an_option(tmp_path):
    source = write_annotations(tmp_path / "a", [("x", 5.0, 3.2), ("y", 4.0)])
    expected = aggregate_annotations([source], AggregateConfig(), tmp_path / "expected")
    answer = aggregate_annotations([source], AggregateConfig(use="answer"), tmp_path / "answer")
    assert [row["score"] for row in scores(expected).values()] == [3.2, 4.0]
    assert [row["score"] for row in scores(answer).values()] == [5.0, 4.0]


def test_majority_counts_answers_not_expected_scores(tmp_path):
    votes = [("x", 4.0, 4.01), ("x", 4.0, 3.98), ("x", 1.0, 1.2)]
    source = write_annotations(tmp_path / "a", votes)
    config = AggregateConfig(method="majority")
    manifest = aggregate_annotations([source], config, tmp_path / "majority")
    assert scores(manifest)["x", "quality"]["score"] == 4.0
    assert config.use == AggregateConfig(method="majority", use=None).use == "answer"
    assert AggregateConfig(use=None).use == AggregateConfig(method="median").use == "expected"
    with pytest.raises(ValidationError, match="expected scores are hardly ever equal: remove use"):
        AggregateConfig(method="majority", use="expected")


def test_annotations_of_several_annotators_count_in_any_order(tmp_path):
    a = write_annotations(tmp_path / "a", [("x", 1.0), ("y", 2.0)], "llama")
    b = write_annotations(tmp_path / "b", [("x", 4.0), ("z", None)], "qwen")
    c = write_annotations(tmp_path / "c", [("x", 4.0)], "mistral")
    one = aggregate_annotations([a, b, c], AggregateConfig(), tmp_path / "one")
    other = aggregate_annotations([c, b, a], AggregateConfig(), tmp_path / "other")
    assert scores(one) == scores(other)
    assert scores(one)["x", "quality"]["score"] == fmean([1.0, 4.0, 4.0])
    expected = {"documents": 3, "criteria": 1, "annotators": 3, "scored": 2, "failed": 1, "votes": 4, "failed_votes": 1}
    assert {name: one.counts[name] for name in expected} == expected
    assert [parent.path for parent in one.parents] == [str(a), str(b), str(c)]


def test_criteria_of_one_directory_are_aggregated_separately(tmp_path):
    votes = [("x", 1.0, None, "quality"), ("x", 0.5, None, "danger"), ("y", None, None, "danger")]
    asked = [prompt(), prompt("danger")]
    manifest = aggregate_annotations(
        [write_annotations(tmp_path / "a", votes, asked=asked)], AggregateConfig(), tmp_path / "o"
    )
    assert {key: row["score"] for key, row in scores(manifest).items()} == {
        ("x", "quality"): 1.0,
        ("x", "danger"): 0.5,
        ("y", "danger"): None,
    }
    assert (manifest.counts["documents"], manifest.counts["scored"], manifest.counts["failed"]) == (2, 2, 1)
    assert criteria_of(manifest) == [DANGER, QUALITY]


def test_same_directory_given_twice_is_an_error(tmp_path):
    a = write_annotations(tmp_path / "a", [("x", 1.0), ("y", 2.0)])
    shutil.copytree(a, tmp_path / "copy")
    (tmp_path / "link").symlink_to(a)
    for again in (a, f"{a}/", tmp_path / "b" / ".." / "a", tmp_path / "copy", tmp_path / "link"):
        (tmp_path / "b").mkdir(exist_ok=True)
        with pytest.raises(InputError, match="are the same annotations, whose votes would count twice"):
            aggregate_annotations([a, again], AggregateConfig(), tmp_path / "out")


def test_duplicate_votes_in_two_directories_are_an_error(tmp_path):
    a = write_annotations(tmp_path / "a", [("x", 1.0), ("y", 2.0)])
    b = write_annotations(tmp_path / "b", [("y", 2.0), ("z", 3.0)])
    with pytest.raises(InputError, match=rf"vote 0 of m on document 'y' is a duplicate \({a} and {b}\)"):
        aggregate_annotations([a, b], AggregateConfig(), tmp_path / "out")
    assert aggregate_annotations([a], AggregateConfig(), tmp_path / "out").counts["votes"] == 2  # nothing stays behind


def test_two_prompts_of_one_annotator_are_two_votes(tmp_path):
    english = write_annotations(tmp_path / "en", [("x", 1.0)])
    german = write_annotations(tmp_path / "de", [("x", 2.0)], asked=[prompt(language="de")])
    manifest = aggregate_annotations([english, german], AggregateConfig(), tmp_path / "out")
    assert scores(manifest)["x", "quality"]["score"] == 1.5
    assert manifest.counts["annotators"] == 1


def test_different_score_ranges_of_one_criterion_are_an_error(tmp_path):
    a = write_annotations(tmp_path / "a", [("x", 4.0)])
    b = write_annotations(tmp_path / "b", [("x", 1.0)], "other", criteria=[UNIT])
    with pytest.raises(
        InputError, match=r"scores quality from 0 to 1 with threshold 0\.5, .*a from 0 to 5 with threshold 3"
    ):
        aggregate_annotations([a, b], AggregateConfig(), tmp_path / "out")


def test_input_other_than_annotations_is_an_error(tmp_path):
    a = write_annotations(tmp_path / "a", [("x", 4.0)])
    aggregate_annotations([a], AggregateConfig(), tmp_path / "scores")
    with pytest.raises(InputError, match="holds scores, not annotations"):
        aggregate_annotations([tmp_path / "scores"], AggregateConfig(), tmp_path / "out")
    with pytest.raises(InputError, match="nowhere does not exist"):
        aggregate_annotations([tmp_path / "nowhere"], AggregateConfig(), tmp_path / "out")


def test_finished_output_is_reused_and_other_settings_are_an_error(tmp_path):
    draw = random.Random(5)
    source = write_annotations(tmp_path / "a", [("x", draw.uniform(0, 5)) for _ in range(5)])
    first = aggregate_annotations([source], AggregateConfig(), tmp_path / "out")
    assert aggregate_annotations([source], AggregateConfig(), tmp_path / "out") == first
    with pytest.raises(InputError, match="with different settings or input"):
        aggregate_annotations([source], AggregateConfig(method="median"), tmp_path / "out")


# --- dawid-skene -----------------------------------------------------------------------------------------------------


@pytest.fixture
def annotators(tmp_path):
    """Two annotators who agree, and one who says 1 to everything and fails on one document."""
    truth = {f"d{n:02}": float(n % 4) for n in range(40)}
    good = write_annotations(tmp_path / "good", list(truth.items()), "good")
    fair = write_annotations(tmp_path / "fair", [(d, 2.0 if d == "d00" else s) for d, s in truth.items()], "fair")
    lazy = write_annotations(tmp_path / "lazy", [(d, None if d == "d39" else 1.0) for d in truth], "lazy")
    return [good, fair, lazy]


def test_dawid_skene_weights_annotators_by_their_reliability(annotators, tmp_path):
    manifest = aggregate_annotations(annotators, AggregateConfig(method="dawid-skene"), tmp_path / "out")
    mean = aggregate_annotations(annotators, AggregateConfig(), tmp_path / "mean")
    three = scores(manifest)["d03", "quality"]
    assert three["score"] == pytest.approx(3.0, abs=0.01)
    assert scores(mean)["d03", "quality"]["score"] == pytest.approx(7 / 3)
    assert three["posterior"][3] > 0.99
    assert sum(three["posterior"]) == pytest.approx(1)
    assert three["score"] == pytest.approx(sum(k * p for k, p in enumerate(three["posterior"])))
    assert three["disagreement"] == pytest.approx(pstdev([3, 3, 1]))
    assert scores(mean)["d03", "quality"]["posterior"] is None
    last = scores(manifest)["d39", "quality"]
    assert (last["votes"], last["failed_votes"]) == (2, 1)


def test_reliability_of_each_annotator_is_written(annotators, tmp_path):
    manifest = aggregate_annotations(annotators, AggregateConfig(method="dawid-skene"), tmp_path / "out")
    [reliability] = read_reliability(manifest)
    assert reliability.classes == [0, 1, 2, 3, 4, 5]
    assert reliability.converged
    good, fair, lazy = reliability.annotators
    assert (good.annotator, fair.annotator, lazy.annotator) == ("good", "fair", "lazy")
    assert good.accuracy > 0.98
    assert lazy.accuracy == pytest.approx(10 / 39, abs=0.01)
    assert (good.votes, lazy.votes) == (40, 39)
    # It said 1 to all 10, 10, 10 and 9 documents of the classes; 0.1 is added to each of the 6 cells.
    always = [(count + 0.1) / (count + 0.6) for count in (10, 10, 10, 9)]
    assert [row[1] for row in lazy.confusion[:4]] == pytest.approx(always, abs=0.005)
    assert json.loads((tmp_path / "out" / "annotators.json").read_text())[0]["criterion"] == "quality"


def test_dawid_skene_rounds_halves_up(tmp_path):
    a = write_annotations(tmp_path / "a", [("x", 2.5), ("y", 1.0), ("z", 0.0)], "a")
    b = write_annotations(tmp_path / "b", [("x", 3.0), ("y", 1.0), ("z", 0.0)], "b")
    manifest = aggregate_annotations([a, b], AggregateConfig(method="dawid-skene"), tmp_path / "out")
    assert scores(manifest)["x", "quality"]["score"] == pytest.approx(3.0, abs=0.05)
    assert scores(manifest)["x", "quality"]["disagreement"] == 0.25  # of the votes as they were given


def test_document_whose_votes_all_failed_has_no_score(annotators, tmp_path):
    more = write_annotations(tmp_path / "more", [("lost", None)], "more")
    manifest = aggregate_annotations([*annotators, more], AggregateConfig(method="dawid-skene"), tmp_path / "out")
    lost = scores(manifest)["lost", "quality"]
    assert (lost["score"], lost["posterior"], lost["votes"], lost["failed_votes"]) == (None, None, 0, 1)


def test_dawid_skene_needs_two_votes_on_a_document(tmp_path):
    alone = write_annotations(tmp_path / "a", [("x", 1.0), ("y", 4.0)])
    with pytest.raises(InputError, match=r"at least two votes.*several annotators.*--votes.*another --method"):
        aggregate_annotations([alone], AggregateConfig(method="dawid-skene"), tmp_path / "out")
    aggregate_annotations([alone], AggregateConfig(), tmp_path / "out")  # nothing of the refused run is in the way


def test_annotations_at_a_url_are_aggregated_from_the_command_line(tmp_path, capsys):
    annotations = write_annotations(tmp_path / "a", [("x", 1.0)])
    fsspec.filesystem("memory").put(f"{annotations}/", "/urls/a", recursive=True)
    assert main(["aggregate", "memory://urls/a", "--output", "memory://urls/scores"]) == 0, capsys.readouterr().err
    assert read_manifest("memory://urls/scores").parents[0].path == "memory://urls/a"
