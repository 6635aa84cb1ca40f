import json
import re
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from ml_filter.cli import main
from ml_filter.config import problems_in
from ml_filter.documents.config import SourceConfig
from ml_filter.documents.manifest import Manifest, find_manifest
from ml_filter.errors import InputError
from ml_filter.heads.config import TrainConfig
from ml_filter.heads.train import train_head
from ml_filter.prepare.tokens import TokenCounter
from ml_filter.scoring.config import ScoreConfig
from ml_filter.scoring.run import score_corpus
from ml_filter.selection.config import FilterConfig
from ml_filter.selection.select import filter_corpus
from tests.selection.scored import kept_ids, read_rows, rows_of, select, write_shards


def scored(path: Path, scores: list[float | None], **columns) -> pa.Table:
    count = len(scores)
    table = pa.table(
        {
            "id": [f"{path.stem}-{i}" for i in range(count)],
            "text": [f"text {i}" for i in range(count)],
            "meta": [{"n": i, "tags": ["a"]} for i in range(count)],
            "score": pa.array(scores, pa.float64()),
            **columns,
        }
    )
    pq.write_table(table, path)
    return table


def keep(path: Path, min_score: float, output: Path) -> Manifest:
    return filter_corpus(SourceConfig(paths=[str(path)]), FilterConfig(min_score=min_score), output)


def read_table(manifest: Manifest) -> pa.Table:
    return pa.concat_tables([pq.read_table(path) for path in manifest.shard_paths()])


def test_documents_with_at_least_the_minimum_score_are_kept_with_all_columns(tmp_path):
    before = scored(tmp_path / "a.parquet", [2.9, 3.0, None, 3.1, 0.0, 5.0])
    manifest = keep(tmp_path / "a.parquet", 3.0, tmp_path / "out")
    assert read_table(manifest).equals(before.take([1, 3, 5]))


def test_every_document_is_counted_as_kept_dropped_or_unscored(tmp_path):
    scored(tmp_path / "a.parquet", [2.9, 3.0, None, 3.1, None])
    (tmp_path / "b.jsonl").write_text('{"text": "t", "score": 4}\nbroken\n{"text": "u", "score": null}\n')
    manifest = keep(tmp_path, 3.0, tmp_path / "out")
    assert manifest.counts == {
        "read": 7,
        "kept": 3,
        "dropped": 1,
        "dropped_below_min_score": 1,
        "unscored": 3,
        "rejected": 1,
        "rejected_invalid_json": 1,
    }


SCORES = st.lists(st.none() | st.floats(0, 5), min_size=1, max_size=20)


@settings(max_examples=25, deadline=None)
@given(shards=st.lists(SCORES, min_size=1, max_size=3), index=st.integers(0, 10), other=st.floats(0, 5))
def test_exactly_the_documents_with_at_least_the_minimum_are_kept_in_their_order(shards, index, other):
    scores = [score for shard in shards for score in shard]
    existing = scores[index % len(scores)]
    minimum = other if existing is None else existing  # mostly an existing score, to test the boundary
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        for number, shard in enumerate(shards):
            scored(directory / f"part-{number}.parquet", shard)
        manifest = keep(directory, minimum, directory / "out")
        kept = [score for path in manifest.shard_paths() for score in pq.read_table(path)["score"].to_pylist()]
    assert kept == [score for score in scores if score is not None and score >= minimum]
    counts = manifest.counts
    assert counts["kept"] + counts["dropped"] + counts["unscored"] == counts["read"] == len(scores)


def test_a_selection_may_keep_nothing(tmp_path):
    scored(tmp_path / "a.parquet", [1.0, None])
    manifest = keep(tmp_path / "a.parquet", 3.0, tmp_path / "out")
    assert (manifest.shards, manifest.counts["kept"], manifest.counts["dropped"]) == ([], 0, 1)


def test_integers_are_scores_and_nulls_are_unscored(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "t", "score": 3}\n{"text": "u", "score": 2}\n')
    (tmp_path / "b.jsonl").write_text('{"text": "v", "score": null}\n')
    manifest = keep(tmp_path, 3, tmp_path / "out")
    assert read_table(manifest)["text"].to_pylist() == ["t"]
    assert manifest.counts["unscored"] == 1


def test_a_corpus_without_numeric_scores_is_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "t"}\n')
    with pytest.raises(InputError, match="has no column 'score'; create it with ml-filter score"):
        keep(tmp_path / "a.jsonl", 3, tmp_path / "a")
    (tmp_path / "b.jsonl").write_text('{"text": "t", "score": "high"}\n')
    with pytest.raises(InputError, match="column 'score' contains string, not numbers"):
        keep(tmp_path / "b.jsonl", 3, tmp_path / "b")


def test_a_finished_selection_is_returned_and_another_minimum_is_refused(tmp_path):
    scored(tmp_path / "a.parquet", [1.0, 4.0])
    first = keep(tmp_path / "a.parquet", 3, tmp_path / "out")
    assert keep(tmp_path / "a.parquet", 3, tmp_path / "out").digest == first.digest
    with pytest.raises(InputError, match="settings or input"):
        keep(tmp_path / "a.parquet", 2, tmp_path / "out")


def test_a_filtered_corpus_can_be_filtered_again(tmp_path):
    scored(tmp_path / "a.parquet", [1.0, 3.0, 4.0])
    keep(tmp_path / "a.parquet", 2, tmp_path / "first")
    second = keep(tmp_path / "first", 4, tmp_path / "second")
    assert read_table(second)["score"].to_pylist() == [4.0]
    assert second.parents[0].digest == find_manifest(str(tmp_path / "first")).digest


# --- Criteria and conditions -----------------------------------------------------------------------------------------


@pytest.fixture
def two_criteria(tmp_path) -> SourceConfig:
    rows = [
        {"id": "a", "text": "t", "score_educational": 4.0, "score_adult": 0.5, "score_status": "scored", "length": 10},
        {"id": "b", "text": "t", "score_educational": 5.0, "score_adult": 2.0, "score_status": "scored", "length": 90},
        {"id": "c", "text": "t", "score_educational": 3.0, "score_adult": 1.0, "score_status": "scored", "length": 90},
        {"id": "d", "text": "t", "score_educational": 1.0, "score_adult": 0.0, "score_status": "scored", "length": 90},
        {"id": "e", "text": "t", "score_educational": None, "score_adult": None, "score_status": "failed", "length": 9},
        {
            "id": "f",
            "text": "t",
            "score_educational": 5.0,
            "score_adult": 0.0,
            "score_status": "scored",
            "length": None,
        },
    ]
    return write_shards(tmp_path / "in", [rows])


def test_several_criteria_and_conditions_apply_together_and_each_reason_is_counted(two_criteria, tmp_path):
    config = {"criterion": "educational", "conditions": ["adult<=1", "length >= 50"], "dropped": True}
    manifest = select(two_criteria, tmp_path / "out", min_score=3, **config)
    assert kept_ids(manifest) == {"c"}
    assert {name: manifest.counts[name] for name in manifest.counts if name.startswith(("dropped", "unscored"))} == {
        "dropped": 3,
        "dropped_condition:adult<=1": 1,
        "dropped_condition:length>=50": 1,
        "dropped_below_min_score": 1,
        "unscored": 2,
    }
    reasons = {row["id"]: row["dropped_reason"] for row in read_rows(find_manifest(f"{manifest.root}/dropped"))}
    assert reasons == {
        "a": "condition:length>=50",
        "b": "condition:adult<=1",
        "d": "below_min_score",
        "e": "unscored",
        "f": "unscored",
    }


def test_conditions_apply_before_ranking(two_criteria, tmp_path):
    condition = {"name": "adult", "op": "<", "value": 1.5}
    manifest = select(two_criteria, tmp_path / "a", keep_fraction=0.5, criterion="educational", conditions=[condition])
    assert kept_ids(manifest) == {"f", "a"}
    manifest = select(two_criteria, tmp_path / "b", keep_fraction=1, criterion="adult", conditions=["educational!=5"])
    assert kept_ids(manifest) == {"a", "c", "d"}
    assert manifest.config["selection"]["score_column"] == "score_adult"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"min_score": 1}, "has scores for educational, adult; choose one with --criterion"),
        ({"min_score": 1, "criterion": "harm"}, "has no criterion 'harm'; available: educational, adult"),
        (
            {"min_score": 1, "criterion": "adult", "conditions": ["harm<1"]},
            "has no criterion or column 'harm' .for harm<1.; available columns: id, text, score_educational",
        ),
        (
            {"min_score": 1, "criterion": "adult", "conditions": ["text<1"]},
            "'text' contains string, not numbers",
        ),
        (
            {"keep_fraction": 1, "criterion": "adult", "quota": "source"},
            "has no column 'source' for the quota; available",
        ),
        (
            {"keep_fraction": 1, "criterion": "adult", "quota": "host"},
            "has no column 'host' for the quota; available",
        ),
        (
            {"token_budget": 9, "criterion": "adult", "token_column": "n"},
            "has no token column 'n'; available",
        ),
    ],
)
def test_a_missing_column_is_an_error_that_lists_the_available_ones(config, message, two_criteria, tmp_path):
    with pytest.raises(InputError, match=message):
        select(two_criteria, tmp_path / "out", **config)


def test_a_single_score_without_a_criterion_name_cannot_be_chosen_by_name(tmp_path):
    source = write_shards(tmp_path / "in", [rows_of([1.0])])
    with pytest.raises(InputError, match="single score without a criterion name; leave out criterion 'edu'"):
        select(source, tmp_path / "out", min_score=0, criterion="edu")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "set exactly one of min_score, keep_fraction, token_budget; set: none"),
        ({"min_score": 3, "token_budget": 5}, "set: min_score, token_budget .to unset one, give null"),
        ({"min_score": 3, "quota": "language"}, "quota and weighted require keep_fraction or token_budget"),
        ({"min_score": 3, "weighted": True}, "quota and weighted require keep_fraction or token_budget"),
        ({"keep_fraction": 0}, "keep_fraction"),
        ({"token_budget": 5, "tokenizer": "a", "token_column": "b"}, "set tokenizer or token_column, not both"),
        ({"min_score": 3, "conditions": ["adult"]}, "'adult' is not a condition; write NAME<=NUMBER"),
        ({"min_score": 3, "conditions": ["adult<=low"]}, "conditions.0.value"),
        ({"keep_fraction": 0.5, "quota": {"by": ["a"], "split": "proportional"}}, "require token_budget"),
        ({"token_budget": 5, "quota": {"by": ["a"], "shares": {"b": 0.5}}}, "shares add up to 0.5, not to 1"),
        ({"token_budget": 5, "quota": {"by": ["a"], "tokens": {"b": 9}}}, "add up to 9, more than token_budget .5."),
        (
            {"token_budget": 5, "quota": {"by": ["a"], "fractions": {"b": 0.5}}},
            "fractions requires keep_fraction",
        ),
        ({"token_budget": 5, "quota": {"by": ["a"], "tokens": {"b": 1}, "shares": {"b": 1}}}, "set only one of shares"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(config, message):
    with pytest.raises(ValidationError) as error:
        FilterConfig.model_validate(config)
    assert re.search(message, problems_in(error.value, "filter"))


def test_conditions_are_parsed_from_text():
    conditions = FilterConfig(min_score=1, conditions=["adult<=1", " a b = -2.50 ", "x!=1e3"]).conditions
    assert [str(condition) for condition in conditions] == ["adult<=1", "a b==-2.5", "x!=1000"]
    assert FilterConfig.model_validate(FilterConfig(min_score=1, conditions=conditions).model_dump(mode="json"))


# --- Dropped documents -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "reason"), [({"min_score": 3}, "below_min_score"), ({"keep_fraction": 0.5}, "over_fraction")]
)
def test_kept_and_dropped_documents_are_together_the_input(config, reason, tmp_path):
    before = scored(tmp_path / "a.parquet", [2.9, 3.0, None, 3.1, 0.0], dropped_reason=["mine"] * 5)
    manifest = select(SourceConfig(paths=[str(tmp_path / "a.parquet")]), tmp_path / "out", **config, dropped=True)
    dropped = find_manifest(f"{manifest.root}/dropped")
    assert (dropped.kind, dropped.counts["unscored"], dropped.counts[f"dropped_{reason}"]) == ("dropped", 1, 2)
    table = read_table(dropped)
    assert table.column_names == [*before.column_names[:-1], "input_dropped_reason", "dropped_reason"]
    assert dict(zip(table["id"].to_pylist(), table["dropped_reason"].to_pylist(), strict=True)) == {
        "a-0": reason,
        "a-2": "unscored",
        "a-4": reason,
    }
    assert read_table(manifest).equals(before.take([1, 3]))


def test_dropped_documents_are_written_only_on_request(tmp_path):
    scored(tmp_path / "a.parquet", [1.0, 4.0])
    keep(tmp_path / "a.parquet", 3, tmp_path / "out")
    assert not (tmp_path / "out" / "dropped").exists()


# --- Real heads and the command line ----------------------------------------------------------------------------------


def test_a_corpus_scored_by_a_head_with_two_criteria_is_selected_by_both(documents, tmp_path):
    labelled = tmp_path / "labelled.jsonl"
    rows = [{**row, "prose": i % 6, "length": min(len(row["text"]) / 2000, 5)} for i, row in enumerate(documents)]
    labelled.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = SourceConfig(paths=[str(labelled)])
    head = train_head(source, TrainConfig(kind="hashing", label_column=["prose", "length"]), tmp_path / "head")
    scored = score_corpus(head.origin, source, ScoreConfig(), tmp_path / "scored")
    config = {"criterion": "length", "conditions": ["prose>=2"], "quota": "source"}
    manifest = select(SourceConfig(paths=[scored.root]), tmp_path / "out", token_budget=20_000, **config)
    kept = read_rows(manifest)
    assert 0 < len(kept) < len(rows)
    assert all(row["score_prose"] >= 2 for row in kept)
    counts = TokenCounter().count([row["text"] for row in kept])
    assert manifest.counts["tokens_kept"] == counts.sum() <= 20_000
    assert manifest.parents[0].digest == scored.digest


def test_the_command_prints_thresholds_by_quota(tmp_path, capsys):
    rows = rows_of([5, 4, 3, None], tokens=[10] * 4, language=["deu", "deu", "spa", "spa"], adult=[0, 0, 2, 0])
    write_shards(tmp_path / "in", [rows])
    line = ["--token-budget", "1_000", "--token-column", "tokens", "--where", "adult<=1", "--quota", "language"]
    line += ["--quota-share", "deu=0.75", "--quota-share", "spa=0.25", "--dropped", "-o", str(tmp_path / "out")]
    assert main(["filter", str(tmp_path / "in"), *line]) == 0
    shown = [part.split() for part in capsys.readouterr().out.splitlines()]
    assert ["deu", "20", "750", "20", "20", "4.000"] in shown
    assert ["tokens", "kept", "20"] in shown
    assert find_manifest(str(tmp_path / "out" / "dropped")).counts["dropped_condition:adult<=1"] == 1
    config = tmp_path / "filter.yaml"
    config.write_text("filter: { keep_fraction: 0.67, conditions: [adult<=1] }\n")
    assert main(["filter", str(tmp_path / "in"), "--config", str(config), "-o", str(tmp_path / "other")]) == 0
    assert "threshold 5 (score)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--min-score", "3", "--keep-fraction", "0.1"],
            "set exactly one of min_score, keep_fraction, token_budget; set:",
        ),
        ([], "set exactly one of min_score, keep_fraction, token_budget; set: none"),
        (
            ["--keep-fraction", "0.1", "--quota", "source"],
            "has no column 'source' for the quota; available columns: id, text, score",
        ),
        (["--keep-fraction", "0.1", "--quota-split", "equal"], "quota.by: Field required"),
        (["--token-budget", "5", "--quota", "id", "--quota-share", "deu"], "deu"),
        (["--token-budget", "5", "--tokenizer", "BROKEN"], "cannot be loaded; give a Hub name or a directory"),
    ],
)
def test_invalid_options_exit_with_2_and_the_reason(options, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    write_shards(tmp_path / "in", [rows_of([1.0])])
    (tmp_path / "tokenizer.json").write_text("{")
    options = [str(tmp_path) if option == "BROKEN" else option for option in options]
    assert main(["filter", str(tmp_path / "in"), *options, "-o", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
