"""From votes to scores."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml_filter.agreement.aggregate import METHODS, aggregate_annotations, majority
from ml_filter.documents.output import OutputDirectory
from ml_filter.documents.schema import ANNOTATION_SCHEMA
from ml_filter.errors import InputError
from ml_filter.settings import AggregateConfig

votes = st.lists(st.floats(0, 5), min_size=1)


def annotations(directory, answers, score_range=(0, 5)):
    """An annotation directory; an answer is (document, parsed score or None for failed, expected score)."""
    rows = [
        {
            **dict.fromkeys(ANNOTATION_SCHEMA.names),
            "document_id": document,
            "annotator": "tester",
            "prompt": "p",
            "prompt_digest": "0",
            "vote": number,
            "status": "failed" if score is None else "scored",
            "score": score,
            "expected_score": expected,
            "error": "timeout" if score is None else None,
        }
        for number, (document, score, expected) in enumerate(answers)
    ]
    made_by = {"criterion": "quality", "score_range": list(score_range)}
    with OutputDirectory(directory, "annotations", made_by, []) as out:
        with out.new_shard("a", ANNOTATION_SCHEMA) as writer, out.new_rejects("a") as rejects:
            writer.write(pa.Table.from_pylist(rows, schema=ANNOTATION_SCHEMA))
        return out.finish([("a", out.commit("a", writer, rejects, {}))])


def scores(manifest):
    return {row["document_id"]: row for row in pq.read_table(manifest.shard_paths()[0]).to_pylist()}


@given(votes, st.randoms(), st.sampled_from(sorted(METHODS)))
def test_every_method_ignores_the_order_of_votes_and_stays_between_them(values, random, method):
    shuffled = random.sample(values, len(values))
    made = METHODS[method](values)
    assert made == pytest.approx(METHODS[method](shuffled))
    assert min(values) - 1e-9 <= made <= max(values) + 1e-9


def test_ties_of_the_majority_are_averaged():
    assert majority([1, 1, 4, 4, 2]) == 2.5
    assert majority([1, 4, 4]) == 4


def test_failed_votes_are_counted_and_never_enter_the_score(tmp_path):
    annotations(tmp_path / "a", [("x", 4.0, None), ("x", None, None), ("x", 2.0, None), ("y", None, None)])
    made = aggregate_annotations([tmp_path / "a"], AggregateConfig(), tmp_path / "out")
    x, y = scores(made)["x"], scores(made)["y"]
    assert (x["score"], x["votes"], x["failed_votes"], x["disagreement"]) == (3.0, 2, 1, 1.0)
    assert (y["score"], y["votes"], y["failed_votes"], y["disagreement"]) == (None, 0, 1, None)
    assert (made.counts["documents"], made.counts["scored"], made.counts["failed"]) == (2, 1, 1)


def test_the_expected_score_is_preferred_and_the_answer_can_be_asked_for(tmp_path):
    annotations(tmp_path / "a", [("x", 5.0, 3.2)])
    expected = aggregate_annotations([tmp_path / "a"], AggregateConfig(), tmp_path / "expected")
    answer = aggregate_annotations([tmp_path / "a"], AggregateConfig(use="answer"), tmp_path / "answer")
    assert scores(expected)["x"]["score"] == 3.2
    assert scores(answer)["x"]["score"] == 5.0


def test_several_annotators_are_joined_and_different_ranges_refused(tmp_path):
    annotations(tmp_path / "a", [("x", 4.0, None)])
    annotations(tmp_path / "b", [("x", 2.0, None)])
    annotations(tmp_path / "c", [("x", 1.0, None)], score_range=(0, 1))
    made = aggregate_annotations([tmp_path / "a", tmp_path / "b"], AggregateConfig(), tmp_path / "out")
    assert scores(made)["x"]["score"] == 3.0
    with pytest.raises(InputError, match="aggregate them apart"):
        aggregate_annotations([tmp_path / "a", tmp_path / "c"], AggregateConfig(), tmp_path / "other")


def test_what_is_not_annotations_is_refused(tmp_path):
    annotations(tmp_path / "a", [("x", 4.0, None)])
    aggregate_annotations([tmp_path / "a"], AggregateConfig(), tmp_path / "scores")
    with pytest.raises(InputError, match="holds scores, not annotations"):
        aggregate_annotations([tmp_path / "scores"], AggregateConfig(), tmp_path / "out")
    with pytest.raises(InputError, match=r"holds no manifest\.json"):
        aggregate_annotations([tmp_path / "nowhere"], AggregateConfig(), tmp_path / "out")
