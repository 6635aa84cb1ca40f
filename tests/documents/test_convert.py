"""Annotations in the formats of other tools: read, written, and back again."""

import gzip
import json
import tempfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_filter.agreement.aggregate import aggregate_annotations
from ml_filter.agreement.config import AggregateConfig
from ml_filter.criterion import Criterion
from ml_filter.documents.config import ConvertConfig, SourceConfig
from ml_filter.documents.convert import convert_to_annotations, write_eurolingua, write_fineweb_edu
from ml_filter.documents.eurolingua import failed_votes
from ml_filter.documents.lineage import criteria_of
from ml_filter.documents.manifest import read_manifest
from ml_filter.errors import ConfigError, InputError
from tests.written import prompt, write_annotations


def record(document="d1", scores=(3.0, 4.0), **more):
    """A record as the EuroLingua tool writes it."""
    return {
        "document_id": document,
        "scores": list(scores),
        "explanations": [f"Educational score: {score}" for score in scores],
        "errors": [[] for _ in scores],
        "time_stamps": [1736356424 for _ in scores],
        "document_processing_status": ["success" if score is not None else "error_faulty_score" for score in scores],
        "meta_information": {
            "prompt_name": "fine_web_edu",
            "prompt_lang": "ro",
            "model_name": "meta-llama/Llama-3.1-8B-Instruct",
            "raw_data_file_path": "data/ro.jsonl",
            "out_tokens_per_second": 161.1,
        },
        **more,
    }


def lines(path, *rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def converted(path, output, **config):
    return convert_to_annotations(SourceConfig(paths=[str(path)]), ConvertConfig(**config), output)


def rows_of(manifest):
    return pq.read_table(manifest.shard_paths()[0]).to_pylist()


def rejected(manifest):
    with open(manifest.path_of("rejects.jsonl")) as file:
        return [(row["place"], row["reason"]) for row in map(json.loads, file)]


# --- EuroLingua ------------------------------------------------------------------------------------------------------


def test_a_record_becomes_a_row_for_each_vote(tmp_path):
    manifest = converted(lines(tmp_path / "a.jsonl", record()), tmp_path / "out")
    first, second = rows_of(manifest)
    assert (first["document_id"], first["vote"], first["score"], first["status"]) == ("d1", 0, 3.0, "scored")
    assert (second["vote"], second["score"]) == (1, 4.0)
    assert first["annotator"] == "meta-llama/Llama-3.1-8B-Instruct"
    assert (first["prompt"], first["criterion"]) == ("fine_web_edu", "fine_web_edu")
    assert first["raw"] == "Educational score: 3.0"
    assert first["created_at"] == "2025-01-08T17:13:44+00:00"
    assert (manifest.counts["documents"], manifest.counts["scored"], manifest.counts["failed"]) == (1, 2, 0)
    [asked_prompt] = manifest.config["prompts"]
    assert (asked_prompt["name"], asked_prompt["language"]) == ("fine_web_edu", "ro")
    assert criteria_of(manifest) == [Criterion(name="fine_web_edu", low=0, high=5, threshold=3)]
    assert asked_prompt["digest"] == first["prompt_digest"]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"scores": [None]}, "unparsable_score"),
        ({"scores": [float("-inf")]}, "no_score"),  # what the first versions wrote for no score
        ({"scores": [None], "document_processing_status": ["error_server"]}, "server_error"),
        ({"scores": [None], "document_processing_status": ["error_no_generated_text"]}, "no_text"),
        ({"scores": [None], "document_processing_status": ["request_collected"]}, "not_answered"),
        ({"errors": [["Request failed with status code 500"]]}, "server_error"),
        ({"document_processing_status": ["error_faulty_score"]}, "unparsable_score"),
        ({"scores": [7.0]}, "out_of_range"),
    ],
)
def test_a_vote_without_a_usable_score_is_failed_not_zero(change, error, tmp_path):
    manifest = converted(lines(tmp_path / "a.jsonl", record(scores=[2.0]) | change), tmp_path / "out")
    [row] = rows_of(manifest)
    assert (row["status"], row["score"], row["error"]) == ("failed", None, error)
    assert (manifest.counts["scored"], manifest.counts["failed"]) == (0, 1)


def test_the_reason_of_a_failed_vote_has_its_errors_and_its_score(tmp_path):
    manifest = converted(
        lines(tmp_path / "a.jsonl", record(scores=[2.0], errors=[["timed out", "gave up"]])), tmp_path / "o"
    )
    assert rows_of(manifest)[0]["reason"] == "timed out; gave up; the file gives the score 2"


def test_a_numeric_id_and_missing_lists_are_accepted(tmp_path):
    row = {"document_id": 7, "scores": [3, 4], "meta_information": {"prompt_name": "edu", "model_name": "m"}}
    manifest = converted(lines(tmp_path / "a.jsonl", row), tmp_path / "out", language="en")
    assert [(r["document_id"], r["prompt"], r["annotator"], r["score"]) for r in rows_of(manifest)] == [
        ("7", "edu", "m", 3.0),
        ("7", "edu", "m", 4.0),
    ]
    assert manifest.config["prompts"][0]["language"] == "en"


def test_a_malformed_record_is_rejected_with_its_line_number(tmp_path):
    path = lines(
        tmp_path / "a.jsonl",
        record("d1"),
        "not JSON",
        record("d2", scores=[]),
        record("d3", time_stamps=[1]),
        {"document_id": "d4", "scores": {"mean": 2.0}, "meta_information": {}},
        record("d1"),
        record("d5"),
        record("d7", scores=[1.0], time_stamps=[1736356424000000]),  # microseconds
    )
    with path.open("a") as file:
        file.write(json.dumps(record("d6"))[:150])  # killed while it wrote
    manifest = converted(path, tmp_path / "out")
    assert [row["document_id"] for row in rows_of(manifest)] == ["d1", "d1", "d5", "d5"]
    assert rejected(manifest) == [
        ("line 2", "invalid_json"),
        ("line 3", "malformed_record"),
        ("line 4", "malformed_record"),
        ("line 5", "malformed_record"),
        ("line 6", "duplicate_id"),
        ("line 8", "malformed_record"),
        ("line 9", "invalid_json"),
    ]
    assert manifest.counts["rejected"] == 7


def test_complete_lines_of_a_truncated_archive_are_converted(tmp_path):
    whole = gzip.compress("".join(json.dumps(record(f"d{n}")) + "\n" for n in range(2000)).encode())
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(whole[: len(whole) // 2])
    manifest = converted(path, tmp_path / "out")
    assert 0 < manifest.counts["documents"] < 2000
    assert manifest.counts["rejected_truncated"] == 1


def test_a_missing_prompt_or_annotator_must_be_named(tmp_path):
    path = lines(tmp_path / "a.jsonl", record(meta_information={}))
    with pytest.raises(
        ConfigError, match=r"a\.jsonl, line 1: the file does not name the prompt; give it with --prompt"
    ):
        converted(path, tmp_path / "out")
    with pytest.raises(ConfigError, match="does not name the annotator; give it with --annotator"):
        converted(path, tmp_path / "out", prompt="edu")
    [row, _] = rows_of(converted(path, tmp_path / "out", prompt="edu", annotator="gpt", criterion="quality"))
    assert (row["prompt"], row["annotator"], row["criterion"]) == ("edu", "gpt", "quality")


def test_a_file_without_records_is_an_error(tmp_path):
    with pytest.raises(InputError, match=r"no record could be read from .*a\.jsonl: invalid_json 1"):
        converted(lines(tmp_path / "a.jsonl", "{]"), tmp_path / "out", prompt="p")


def test_a_written_record_has_the_fields_of_the_eurolingua_tool(tmp_path):
    source = write_annotations(tmp_path / "a", [("x", 3.0), ("x", None), ("y", 1.0)], "org/model")
    counts = write_eurolingua(source, tmp_path / "a.jsonl")
    assert counts == {"documents": 2, "scored": 2, "failed": 1}
    x, y = map(json.loads, (tmp_path / "a.jsonl").read_text().splitlines())
    assert x == {
        "document_id": "x",
        "scores": [3.0, None],
        "explanations": ["", ""],
        "errors": [[], ["timeout"]],
        "time_stamps": [0, 0],
        "document_processing_status": ["success", "error_server"],
        "meta_information": {
            "prompt_name": "quality_en",
            "prompt_lang": "en",
            "model_name": "org/model",
            "raw_data_file_path": "",
            "out_tokens_per_second": 0.0,
            "prompt_digest": "digest of quality_en",
            "criterion": "quality",
            "error_codes": [None, "timeout"],
        },
    }
    assert y["document_id"] == "y"


SCORES = st.none() | st.integers(0, 10).map(lambda n: n / 2)
VOTES = st.dictionaries(st.text(min_size=1).filter(lambda t: t.isprintable()), st.lists(SCORES, min_size=1, max_size=3))


@settings(max_examples=20, deadline=None)
@given(VOTES.filter(bool), st.sampled_from(["en", None]))
def test_annotations_survive_a_round_trip(votes, language):
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        given_votes = [(document, score) for document, scores in votes.items() for score in scores]
        source = write_annotations(directory / "a", given_votes, asked=[prompt(language=language)])
        write_eurolingua(source, directory / "a.jsonl")
        back = converted(directory / "a.jsonl", directory / "b")
        assert rows_of(back) == rows_of(read_manifest(str(source)))
        assert back.config["prompts"] == read_manifest(str(source)).config["prompts"]
        write_eurolingua(directory / "b", directory / "b.jsonl")
        assert (directory / "b.jsonl").read_bytes() == (directory / "a.jsonl").read_bytes()


def test_a_file_has_one_criterion(tmp_path):
    votes = [("x", 1.0), ("x", 0.5, None, "danger")]
    source = write_annotations(tmp_path / "a", votes, asked=[prompt(), prompt("danger")])
    with pytest.raises(InputError, match="has scores of danger, quality; choose one with --criterion"):
        write_eurolingua(source, tmp_path / "a.jsonl")
    assert not (tmp_path / "a.jsonl").exists()
    write_eurolingua(source, tmp_path / "a.jsonl", "danger")
    assert json.loads((tmp_path / "a.jsonl").read_text())["scores"] == [0.5]


def test_a_file_with_other_content_is_not_overwritten(tmp_path):
    source = write_annotations(tmp_path / "a", [("x", 1.0)])
    write_eurolingua(source, tmp_path / "a.jsonl")
    write_eurolingua(source, tmp_path / "a.jsonl")  # the same again
    precious = lines(tmp_path / "precious.jsonl", {"years": "of work"})
    with pytest.raises(InputError, match="already exists with other content"):
        write_eurolingua(source, precious)
    assert json.loads(precious.read_text()) == {"years": "of work"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "a.jsonl", "precious.jsonl"]


# --- flat rows -------------------------------------------------------------------------------------------------------

FLAT = [
    {"id": "d1", "text": "a page", "url": "https://example.org", "score": 2.6, "int_score": 3},
    {"id": "d2", "text": "another page", "url": "https://example.com", "score": None, "int_score": None},
    {"id": "d3", "text": "", "url": "https://example.net", "score": 1.0, "int_score": 1},
]


def test_flat_rows_become_annotations_whose_documents_are_the_file(tmp_path):
    path = lines(tmp_path / "flat.jsonl", *FLAT)
    manifest = converted(path, tmp_path / "out", prompt="edu", annotator="llama")
    assert [(r["document_id"], r["annotator"], r["score"], r["error"]) for r in rows_of(manifest)] == [
        ("d1", "llama", 2.6, None),
        ("d2", "llama", None, "no_score"),
    ]
    assert rejected(manifest) == [("document d3", "empty_text")]
    scores = aggregate_annotations([manifest.root], AggregateConfig(), tmp_path / "scores")
    assert write_fineweb_edu(scores.root, tmp_path / "back.jsonl") == {
        "documents": 2,
        "scored": 1,
        "failed": 1,
        "without_text": 0,
    }
    assert [json.loads(line) for line in (tmp_path / "back.jsonl").read_text().splitlines()] == FLAT[:2]


def test_each_column_of_scores_is_an_annotator(tmp_path):
    path = lines(
        tmp_path / "flat.jsonl", {"id": "d1", "text": "a page", "llama": 1, "human": 2.5}, {"text": "b", "llama": 0}
    )
    manifest = converted(path, tmp_path / "out", prompt="edu", score_columns=["llama", "human"])
    rows = [(r["annotator"], r["score"], r["status"]) for r in rows_of(manifest)]
    assert rows == [
        ("llama", 1.0, "scored"),
        ("human", 2.5, "scored"),
        ("llama", 0.0, "scored"),
        ("human", None, "failed"),
    ]
    with pytest.raises(ConfigError, match="--annotator names one annotator"):
        converted(path, tmp_path / "never", prompt="edu", score_columns=["llama", "human"], annotator="me")


def test_missing_settings_of_flat_rows_are_named(tmp_path):
    path = lines(tmp_path / "flat.jsonl", {"id": "d1", "text": "a page", "grade": "good"})
    with pytest.raises(ConfigError, match="does not name the prompt; give it with --prompt"):
        converted(path, tmp_path / "out")
    with pytest.raises(InputError, match="has no column score; it has id, text, grade; set --score-column"):
        converted(path, tmp_path / "out", prompt="edu")
    with pytest.raises(InputError, match="column 'grade' does not hold numbers"):
        converted(path, tmp_path / "out", prompt="edu", score_columns=["grade"])


@settings(max_examples=15, deadline=None)
@given(st.lists(st.none() | st.floats(0, 5), min_size=1, max_size=8).filter(lambda v: any(x is not None for x in v)))
def test_flat_rows_survive_a_round_trip(values):
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        rows = [{"id": f"d{n}", "text": f"page {n}", "score": value} for n, value in enumerate(values)]
        manifest = converted(lines(directory / "flat.jsonl", *rows), directory / "a", prompt="edu")
        scores = aggregate_annotations([manifest.root], AggregateConfig(), directory / "scores")
        write_fineweb_edu(scores.root, directory / "back.jsonl")
        back = [json.loads(line) for line in (directory / "back.jsonl").read_text().splitlines()]
        assert [{k: v for k, v in row.items() if k != "int_score"} for row in back] == rows
        for row in back:
            assert row["int_score"] is None if row["score"] is None else abs(row["int_score"] - row["score"]) <= 0.5


def test_annotations_in_place_of_aggregated_scores_are_an_error(tmp_path):
    source = write_annotations(tmp_path / "a", [("x", 1.0)])
    with pytest.raises(InputError, match="holds annotations, not aggregated scores; make them with aggregate"):
        write_fineweb_edu(source, tmp_path / "a.jsonl")


def test_real_scores_of_llama_are_converted(shared_data, tmp_path):
    manifest = converted(
        shared_data / "fineweb_edu_llm_scored_1000.jsonl",
        tmp_path / "out",
        prompt="edu",
        score_columns=["llama3_70b_score"],
    )
    assert (manifest.counts["documents"], manifest.counts["scored"], manifest.counts["rejected"]) == (1000, 1000, 0)
    assert sum(row["score"] == 0 for row in rows_of(manifest)) == 136


def test_flat_rows_without_a_text_get_a_hint(tmp_path):
    path = lines(tmp_path / "scores.jsonl", {"id": "x", "score": 3}, {"id": "y", "score": 4})
    with pytest.raises(
        InputError, match=r"missing_text 2; flat rows need a text \(--text-column\); `ml-filter agreement`"
    ):
        converted(path, tmp_path / "out", prompt="edu", annotator="m")


def test_failed_votes_of_a_record_are_known_without_converting_it():
    votes = record(scores=[1.0, None], document_processing_status=["success", "error_server"])
    assert failed_votes(votes) == [False, True]
    assert failed_votes({"document_id": "d1", "scores": [1.0]}) is None
    with pytest.raises(ValueError, match=r"malformed record: scores\.0"):
        failed_votes(record(scores=["good"]))


def test_items_of_a_list_are_score_columns(tmp_path):
    path = lines(tmp_path / "a.jsonl", {"id": "x", "text": "one", "scores": [3, 1]})
    manifest = converted(path, tmp_path / "out", prompt="edu", score_columns=["scores[0]", "scores[1]"])
    assert [(row["annotator"], row["score"]) for row in rows_of(manifest)] == [("scores[0]", 3.0), ("scores[1]", 1.0)]
    with pytest.raises(InputError, match=r"does not hold numbers .*; name its items: scores\[0\], scores\[1\]"):
        converted(path, tmp_path / "other", prompt="edu", score_columns=["scores"])
