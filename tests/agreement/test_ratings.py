"""From annotations, scores and tables to who gave which document what."""

import gzip
import json
import math

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from loguru import logger

from ml_filter.agreement.aggregate import aggregate_annotations
from ml_filter.agreement.config import AggregateConfig, AgreementConfig
from ml_filter.agreement.ratings import NO_STRATUM, read_ratings
from ml_filter.criterion import Criterion
from ml_filter.documents.config import ConvertConfig, SourceConfig
from ml_filter.documents.convert import convert_to_annotations
from ml_filter.documents.readers import text_id
from ml_filter.errors import InputError
from tests.written import prompt, write_annotations

NAN = math.nan


def table(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def read(*scores, gold=None, gold_id=None, **options):
    source = SourceConfig(paths=[str(gold)], id_column=gold_id) if gold else None
    return read_ratings([str(path) for path in scores], AgreementConfig(gold=source, **options))[0]


def assert_refused(path, message):
    """The table's two ratings cannot be read, and the error says why."""
    with pytest.raises(InputError) as raised:
        read(path, rating_columns=["a", "b"])
    assert message in str(raised.value)


def by_rater(ratings) -> dict[str, dict[str, float]]:
    """Scores by rater and document, without those that are not there."""
    return {
        rater: {
            d: float(v) for d, v in zip(ratings.documents, ratings.values[:, column], strict=True) if math.isfinite(v)
        }
        for column, rater in enumerate(ratings.raters)
    }


# --- Kinds of input --------------------------------------------------------------------------------------------------


def test_annotators_are_raters_whose_votes_are_averaged(tmp_path):
    write_annotations(tmp_path / "a", [("x", 4.0), ("x", 3.0), ("x", None), ("y", None), ("z", 1.0)], annotator="llama")
    write_annotations(tmp_path / "b", [("x", 2.0), ("y", 5.0), ("z", 0.0)], annotator="qwen")
    ratings = read(tmp_path / "a", tmp_path / "b")
    assert by_rater(ratings) == {"llama": {"x": 3.5, "z": 1.0}, "qwen": {"x": 2.0, "y": 5.0, "z": 0.0}}
    failed = dict(zip(ratings.documents, ratings.failed[:, 0], strict=True))
    assert failed == {"x": False, "y": True, "z": False}  # one vote on x failed, two did not
    assert not ratings.failed[:, 1].any()
    assert ratings.score_range == (0, 5)
    assert [(one.kind, one.rows, one.documents) for one in ratings.inputs] == [
        ("annotations", 5, 3),
        ("annotations", 3, 3),
    ]


def test_votes_can_be_separate_raters(tmp_path):
    write_annotations(tmp_path / "a", [("x", 4.0), ("x", 3.0), ("y", 1.0), ("y", None)])
    ratings = read(tmp_path / "a", votes_as_raters=True)
    assert by_rater(ratings) == {"m vote 0": {"x": 4.0, "y": 1.0}, "m vote 1": {"x": 3.0}}
    assert ratings.failed[:, 1].tolist() == [False, True]


def test_expected_score_is_the_default_and_the_answer_an_option(tmp_path):
    write_annotations(tmp_path / "a", [("x", 5.0, 3.2), ("y", 2.0)], annotator="a")
    write_annotations(tmp_path / "b", [("x", 1.0)], annotator="b")
    assert by_rater(read(tmp_path / "a", tmp_path / "b"))["a"] == {"x": 3.2, "y": 2.0}
    assert by_rater(read(tmp_path / "a", tmp_path / "b", use="answer"))["a"] == {"x": 5.0, "y": 2.0}


def test_criterion_must_be_chosen_if_there_are_several(tmp_path):
    asked = [prompt("quality"), prompt("danger")]
    write_annotations(tmp_path / "a", [("x", 4.0, None, "quality"), ("x", 1.0, None, "danger")], "a", asked)
    write_annotations(tmp_path / "b", [("x", 2.0, None, "quality"), ("x", 0.0, None, "danger")], "b", asked)
    with pytest.raises(InputError, match="has scores of danger, quality; choose one with --criterion"):
        read(tmp_path / "a", tmp_path / "b")
    with pytest.raises(InputError, match="has no scores of 'humour'; it has danger, quality"):
        read(tmp_path / "a", tmp_path / "b", criterion="humour")
    ratings = read(tmp_path / "a", tmp_path / "b", criterion="danger")
    assert by_rater(ratings) == {"a": {"x": 1.0}, "b": {"x": 0.0}}
    assert ratings.score_range == (0, 1)
    scores = [aggregate_annotations([tmp_path / d], AggregateConfig(), tmp_path / f"{d}-scores").root for d in "ab"]
    with pytest.raises(InputError, match="choose one with --criterion"):
        read(*scores)
    ratings = read(*scores, criterion="quality")
    assert by_rater(ratings) == {"a-scores": {"x": 4.0}, "b-scores": {"x": 2.0}}
    assert ratings.score_range == (0, 5)


def test_directory_of_scores_is_a_rater_whose_null_scores_failed(tmp_path):
    annotations = write_annotations(tmp_path / "a", [("x", 4.0), ("y", None), ("z", 2.0)])
    aggregate_annotations([annotations], AggregateConfig(), tmp_path / "scores")
    gold = table(tmp_path / "gold.jsonl", [{"id": d, "human_score": 3} for d in "xyz"])
    ratings = read(tmp_path / "scores", gold=gold)
    assert ratings.has_gold
    assert by_rater(ratings) == {"human_score": {"x": 3, "y": 3, "z": 3}, "scores": {"x": 4, "z": 2}}
    assert ratings.failed.tolist() == [[False, False], [False, True], [False, False]]


def test_table_has_several_raters_in_a_list_or_in_columns(tmp_path):
    listed = table(
        tmp_path / "a.jsonl", [{"document_id": 7, "scores": [1, None, 3]}, {"document_id": 8, "scores": [2]}]
    )
    assert by_rater(read(listed)) == {"scores[0]": {"7": 1, "8": 2}, "scores[1]": {}, "scores[2]": {"7": 3}}
    columns = table(tmp_path / "b.jsonl", [{"id": "x", "anna": "2.5", "ben": 1}, {"id": "y", "anna": 0, "ben": None}])
    ratings = read(columns, rating_columns=["anna", "ben"])
    assert by_rater(ratings) == {"anna": {"x": 2.5, "y": 0}, "ben": {"x": 1}}
    assert not ratings.failed.any()  # a rating that is not there is none that failed


def eurolingua(document, scores, **more):
    return {"document_id": document, "scores": scores, "errors": [[] for _ in scores], **more}


def test_failed_votes_of_eurolingua_records_are_recognized(tmp_path):
    rows = [
        eurolingua("x", [1.0, 2.0], document_processing_status=["success", "success"]),
        eurolingua("y", [None, 3.0], document_processing_status=["error_faulty_score", "success"]),
        eurolingua("z", [2.0, None], errors=[["cut off"], []]),  # a score beside an error is none
    ]
    path = table(tmp_path / "older.jsonl", rows)
    ratings = read(path)
    assert by_rater(ratings) == {"scores[0]": {"x": 1.0}, "scores[1]": {"x": 2.0, "y": 3.0}}
    assert ratings.failed.tolist() == [[False, False], [True, False], [True, True]]
    config = ConvertConfig(prompt="edu", annotator="llama")
    convert_to_annotations(SourceConfig(paths=[path]), config, tmp_path / "converted")
    converted = read(tmp_path / "converted", votes_as_raters=True)
    assert (converted.documents, converted.failed.tolist()) == (ratings.documents, ratings.failed.tolist())
    np.testing.assert_array_equal(converted.values, ratings.values)


def test_malformed_eurolingua_record_is_an_error_with_its_location(tmp_path):
    path = table(tmp_path / "older.jsonl", [eurolingua("x", [1.0]), eurolingua("y", ["good"])])
    with pytest.raises(InputError, match=r"older\.jsonl, line 2: malformed record: scores\.0"):
        read(path)


def test_failed_scores_of_a_scored_corpus_are_not_missing_ratings(tmp_path):
    rows = [{"id": "x", "score": 1.5, "score_status": "scored"}, {"id": "y", "score": None, "score_status": "failed"}]
    gold = table(tmp_path / "gold.jsonl", [{"id": d, "human_score": 1} for d in "xy"])
    ratings = read(table(tmp_path / "scored.jsonl", rows), gold=gold)
    assert ratings.failed.tolist() == [[False, False], [False, True]]


@pytest.mark.parametrize("ending", ["parquet", "jsonl", "jsonl.gz", "jsonl.zst", "csv", "csv.zst", "tsv.gz"])
def test_every_table_format_gives_the_same_ratings(tmp_path, ending):
    rows = [{"id": str(i), "a": i % 4, "b": (i * i) % 5, "text": "unread " * i} for i in range(50)]
    path = tmp_path / f"ratings.{ending}"
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    kind, _, packing = ending.partition(".")
    if kind in ("csv", "tsv"):
        lines = pd.DataFrame(rows).to_csv(index=False, sep="," if kind == "csv" else "\t").encode()
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_bytes({"": bytes, "gz": gzip.compress, "zst": zstandard.compress}[packing](lines))
    ratings = read(path, rating_columns=["a", "b"])
    assert by_rater(ratings) == {name: {row["id"]: float(row[name]) for row in rows} for name in "ab"}


def test_gold_saved_by_a_spreadsheet_is_read(tmp_path):
    gold = tmp_path / "gold.csv"
    gold.write_bytes('\ufeffid;human_score;note\r\n007;3;"two\r\nlines; one ""value"""\r\n008;;\r\n'.encode())
    ratings = read(table(tmp_path / "a.jsonl", [{"id": "007", "score": 2}, {"id": "008", "score": 1}]), gold=gold)
    assert by_rater(ratings) == {"human_score": {"007": 3.0}, "score": {"007": 2.0, "008": 1.0}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"id,a,b\nx,1,1\ny,much,1\n", "line 3: 'much' in column 'a' is not a number"),
        (b"id,a,b\nx,1,1\ny,1\n", "line 3: 2 values for 3 columns"),
        (b'id,a,b\n"x,1,1\ny,1,1\n', "line 2: unexpected end of data"),
        (b"id,a,b\nx,1,\xff\n", "line 2: not UTF-8"),
        ("id,é,b\nx,1,1\n".encode("latin-1"), "is not UTF-8; save it as UTF-8"),
        (b"id,a,a\nx,1,1\n", "has several columns named 'a'; rename them"),
        (b"", "has no column 'a'; it has no rows"),
    ],
)
def test_unreadable_csv_is_an_error_with_its_location(tmp_path, content, message):
    path = tmp_path / "bad.csv"
    path.write_bytes(content)
    assert_refused(path, message)


def test_documents_without_id_are_joined_by_their_text(tmp_path):
    a = table(tmp_path / "a.jsonl", [{"text": "one", "score": 1}, {"text": "two", "score": 2}])
    b = table(tmp_path / "b.jsonl", [{"id": text_id("two"), "score": 4}])
    ratings = read(a, b)
    assert by_rater(ratings)["b.jsonl: score"] == {text_id("two"): 4}
    assert len(ratings.documents) == 2
    with pytest.raises(InputError, match=r"c\.jsonl, line 1 has no id or document_id"):
        read(a, table(tmp_path / "c.jsonl", [{"score": 1}]))


# --- Joining ---------------------------------------------------------------------------------------------------------


def test_documents_are_joined_by_id_and_unmatched_rows_are_counted(tmp_path):
    a = table(tmp_path / "a.jsonl", [{"id": d, "score": i} for i, d in enumerate("zyxw")])
    b = table(tmp_path / "b.jsonl", [{"id": d, "score": i} for i, d in enumerate("vxyz")])
    ratings = read(a, b, gold=table(tmp_path / "g.jsonl", [{"key": d, "human_score": 0} for d in "yzq"]), gold_id="key")
    assert ratings.documents == ["q", "y", "z"]
    unmatched = {i.kind + i.path[-7:]: (i.rows, i.documents, i.unmatched_rows) for i in ratings.inputs}
    assert unmatched == {"goldg.jsonl": (3, 3, 1), "tablea.jsonl": (4, 2, 2), "tableb.jsonl": (4, 2, 2)}
    assert by_rater(ratings)["a.jsonl: score"] == {"y": 1, "z": 0}


def test_inputs_without_a_common_document_are_an_error_that_shows_ids(tmp_path):
    a = table(tmp_path / "a.jsonl", [{"id": f"a{i}", "score": i} for i in range(5)])
    b = table(tmp_path / "b.jsonl", [{"id": f"b{i}", "score": i} for i in range(5)])
    gold = table(tmp_path / "g.jsonl", [{"id": "a1", "human_score": 1}, {"id": "a2", "human_score": 1}])
    with pytest.raises(InputError, match=r"b\.jsonl has no document in common .* look like b0, b1, those of .* a0, a1"):
        read(a, b)
    with pytest.raises(InputError, match=r"b\.jsonl has no document in common .* look like b0, b1, those of .* a1, a2"):
        read(a, b, gold=gold)
    half = table(tmp_path / "half.jsonl", [{"id": "x", "a": 1, "b": None}, {"id": "y", "a": None, "b": 2}])
    with pytest.raises(InputError, match=r"no document was scored by two raters: a \(1 scored, 0 failed\), b"):
        read(half, rating_columns=["a", "b"])


def test_single_rater_is_an_error(tmp_path):
    with pytest.raises(InputError, match=r"has only one rater \(score\).*add --gold"):
        read(table(tmp_path / "a.jsonl", [{"id": "x", "score": 1}]))


def test_raters_get_the_shortest_unique_names(tmp_path):
    for directory in ("a", "b"):
        write_annotations(tmp_path / directory, [("x", 4.0)], annotator="llama")
    write_annotations(tmp_path / "c", [("x", 4.0)], annotator="qwen")
    write_annotations(tmp_path / "d", [("x", 4.0)], annotator="llama", asked=[prompt("quality", language="de")])
    names = read(*(tmp_path / directory for directory in "abcd")).raters
    assert names == [f"llama in {tmp_path / 'a'}", f"llama in {tmp_path / 'b'}", "qwen", "llama / quality_de"]
    with pytest.raises(InputError, match=r"llama in .*a is a duplicate"):
        read(tmp_path / "a", tmp_path / "a")


def test_gold_and_ratings_can_be_in_the_same_file(tmp_path):
    path = table(tmp_path / "g.jsonl", [{"id": d, "human_score": 3, "llm": 2} for d in "xyz"])
    assert read(path, gold=path, rating_columns=["llm"]).raters == ["human_score", "llm"]
    same = read(path, gold=path, rating_columns=["human_score"])
    assert same.raters == ["gold g.jsonl: human_score", "g.jsonl: human_score"]


def test_row_that_repeats_a_document_is_a_further_vote(tmp_path):
    path = table(tmp_path / "a.jsonl", [{"id": "x", "a": 1, "b": 2}, {"id": "x", "a": 2, "b": None}])
    ratings = read(path, rating_columns=["a", "b"])
    assert by_rater(ratings) == {"a": {"x": 1.5}, "b": {"x": 2.0}}
    assert (ratings.inputs[0].rows, ratings.inputs[0].documents) == (2, 1)


@pytest.fixture
def warnings():
    said = []
    sink = logger.add(lambda message: said.append(message.record["message"]), level="WARNING", format="{message}")
    yield said
    logger.remove(sink)


def test_repeated_documents_of_a_table_are_logged(tmp_path, warnings):
    gold = table(tmp_path / "gold.jsonl", [{"id": "x", "human_score": score} for score in (0, 4)])
    read(table(tmp_path / "a.jsonl", [{"id": "x", "score": 1}]), gold=gold)
    assert warnings == [f"{gold}: documents with several rows, whose ratings are averaged: 1, such as 'x'"]


def test_scores_outside_the_range_of_the_prompt_are_logged(tmp_path, warnings):
    directory = write_annotations(tmp_path / "a", [("x", 1), ("y", 5)])
    read(
        directory, gold=table(tmp_path / "in.jsonl", [{"id": "x", "human_score": -0.5}, {"id": "y", "human_score": 5}])
    )
    assert not warnings
    read(directory, gold=table(tmp_path / "out.jsonl", [{"id": "x", "human_score": 0}, {"id": "y", "human_score": 90}]))
    assert len(warnings) == 1
    assert "human_score: 1 of 2 scores are outside the range 0 to 5, such as 90;" in warnings[0]


def test_gold_without_ratings_is_an_error(tmp_path):
    gold = table(tmp_path / "gold.jsonl", [{"id": "x", "human_score": None}])
    with pytest.raises(InputError, match=r"human_score \(0 scored, 0 failed\), .* --gold-column or --rating-columns"):
        read(table(tmp_path / "a.jsonl", [{"id": "x", "score": 1}]), gold=gold)


def test_range_and_threshold_are_those_of_the_criterion(tmp_path):
    strict = Criterion(name="quality", low=0, high=4, threshold=2)
    for name in "ab":
        write_annotations(tmp_path / name, [("x", 4.0)], annotator=name, criteria=[strict])
    ratings = read(tmp_path / "a", tmp_path / "b")
    assert (ratings.score_range, ratings.threshold) == ((0, 4), 2)
    assert read(tmp_path / "a", tmp_path / "b", threshold=3).threshold == 3
    with pytest.raises(InputError, match=r"different score ranges: .*b from 0 to 4; score_range from 0 to 5"):
        read(tmp_path / "a", tmp_path / "b", score_range=(0, 5))


def test_range_and_threshold_of_tables_are_those_of_the_settings(tmp_path):
    rated = table(tmp_path / "a.jsonl", [{"id": "x", "a": 1, "b": 2}])
    columns = ["a", "b"]
    ratings = read(rated, rating_columns=columns)
    assert (ratings.score_range, ratings.threshold) == (None, 3)
    ratings = read(rated, rating_columns=columns, score_range=(0, 3))
    assert (ratings.score_range, ratings.threshold) == ((0, 3), 1.5)


def test_different_thresholds_are_an_error_unless_one_is_chosen(tmp_path):
    write_annotations(tmp_path / "a", [("x", 4.0)], annotator="a")
    strict = Criterion(name="quality", low=0, high=5, threshold=4)
    write_annotations(tmp_path / "b", [("x", 1.0)], annotator="b", criteria=[strict])
    with pytest.raises(InputError, match=r"different thresholds: .*a 3; .*b 4; choose one with --threshold"):
        read(tmp_path / "a", tmp_path / "b")
    assert read(tmp_path / "a", tmp_path / "b", threshold=4).threshold == 4


def test_different_score_ranges_are_an_error(tmp_path):
    write_annotations(tmp_path / "a", [("x", 4.0)], annotator="a")
    write_annotations(
        tmp_path / "b", [("x", 1.0)], annotator="b", criteria=[Criterion(name="quality", low=0, high=1, threshold=1)]
    )
    with pytest.raises(InputError, match=r"different score ranges: .*a from 0 to 5; .*b from 0 to 1"):
        read(tmp_path / "a", tmp_path / "b")


# --- Strata ----------------------------------------------------------------------------------------------------------


def test_strata_come_from_any_table_with_the_column(tmp_path):
    gold = table(tmp_path / "g.jsonl", [{"id": "x", "human_score": 1, "language": "de"}, {"id": "y", "human_score": 2}])
    rated = table(tmp_path / "a.jsonl", [{"id": "x", "score": 1, "source": 7}, {"id": "y", "score": 1, "source": 8}])
    ratings = read(rated, gold=gold, by=["language", "source"])
    assert ratings.columns == {"language": ["de", NO_STRATUM], "source": ["7", "8"]}
    with pytest.raises(InputError, match="no table has the column 'host' to compare by; there are human_score, id"):
        read(rated, gold=gold, by=["host"])


# --- Bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"id": "x", "a": 1, "b": "good"}\n', "line 1: 'good' in column 'b' is not a number"),
        (
            '{"id": "x", "a": 1, "b": 1}\n\n{"id": "y", "a": 1e999, "b": 1}\n',
            "line 3: inf in column 'a' is not a finite",
        ),
        ('{"id": "x", "a": 1, "b": 1}\n{"id": "y", "a"', "line 2: not JSON"),
        ("[1, 2]\n", "line 1: a JSON int, not an object"),
        ('{"id": "x", "a": 1}\n', "has no column 'b'; it has a, id; name the ratings with --rating-columns"),
        ("", "has no column 'a'; it has no rows"),
    ],
)
def test_unreadable_table_is_an_error_with_its_location(tmp_path, content, message):
    path = tmp_path / "bad.jsonl"
    path.write_text(content)
    assert_refused(path, message)


@pytest.mark.parametrize("ending", ["parquet", "jsonl.gz", "jsonl.zst"])
def test_truncated_file_is_an_error(tmp_path, ending):
    rows = [{"id": str(i), "a": i % 4, "b": (i * 7919) % 5} for i in range(500)]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path = tmp_path / f"ratings.{ending}"
    if ending == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_bytes(gzip.compress(lines) if ending == "jsonl.gz" else zstandard.compress(lines))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=rf"ratings\.{ending} cannot be read"):
        read(path, rating_columns=["a", "b"])


def test_input_without_ratings_is_an_error(tmp_path):
    rated = table(tmp_path / "a.jsonl", [{"id": "x", "score": 1}])
    with pytest.raises(InputError, match=r"no column score or scores; it has id, text; .* --rating-columns"):
        read(table(tmp_path / "documents.jsonl", [{"id": "x", "text": "t"}]), rated)
    with pytest.raises(InputError, match=r"has no column 'human_score'; it has id, score; .* --gold-column"):
        read(rated, gold=rated)
    with pytest.raises(InputError, match=r"nowhere\.jsonl does not exist"):
        read(tmp_path / "nowhere.jsonl", rated)
    (tmp_path / "pages.warc").touch()
    with pytest.raises(InputError, match="tables are Parquet, Arrow, JSON lines, CSV or MongoDB, not warc"):
        read(tmp_path / "pages.warc", rated)


def test_nan_is_a_missing_rating(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": ["x", "y"], "a": [1.0, NAN], "b": [2.0, 3.0]}), path)
    ratings = read(path, rating_columns=["a", "b"])
    assert np.isnan(ratings.values[1, 0])
    assert not ratings.failed.any()


def test_one_item_of_a_list_can_be_the_rating(tmp_path):
    rated = table(tmp_path / "a.jsonl", [{"id": "x", "score": 1}, {"id": "y", "score": 2}])
    gold = table(tmp_path / "g.jsonl", [{"id": "x", "labels": [3, 1]}, {"id": "y", "labels": [2]}])
    ratings = read(rated, gold=gold, gold_column="labels[1]")
    assert ratings.values[:, 0].tolist() == [1.0, pytest.approx(float("nan"), nan_ok=True)]
