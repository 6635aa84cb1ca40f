import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from ml_filter.config import problems_in
from ml_filter.documents.config import SourceConfig
from ml_filter.documents.manifest import Manifest, find_manifest
from ml_filter.errors import InputError
from ml_filter.heads.config import TrainConfig
from ml_filter.heads.train import train_head
from ml_filter.scoring.config import ScoreConfig
from ml_filter.scoring.run import score_corpus
from ml_filter.selection.config import FilterConfig
from ml_filter.selection.select import filter_corpus
from ml_filter.selection.tokens import TokenCounter
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


def table_of(manifest: Manifest) -> pa.Table:
    return pa.concat_tables([pq.read_table(path) for path in manifest.shard_paths()])


def test_documents_at_or_above_the_minimum_are_kept_with_all_their_columns(tmp_path):
    before = scored(tmp_path / "a.parquet", [2.9, 3.0, None, 3.1, 0.0, 5.0])
    manifest = keep(tmp_path / "a.parquet", 3.0, tmp_path / "out")
    assert table_of(manifest).equals(before.take([1, 3, 5]))


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


def ml_filter(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ml_filter.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "200"})


SCORES = st.lists(st.none() | st.floats(0, 5), min_size=1, max_size=20)


@settings(max_examples=40, deadline=None)
@given(shards=st.lists(SCORES, min_size=1, max_size=3), place=st.integers(0, 10), free=st.floats(0, 5))
def test_exactly_the_scores_that_reach_the_minimum_are_kept_in_order(shards, place, free):
    scores = [score for shard in shards for score in shard]
    chosen = scores[place % len(scores)]
    minimum = free if chosen is None else chosen  # a score that is there, so that the border itself is tried
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        for number, shard in enumerate(shards):
            scored(directory / f"part-{number}.parquet", shard)
        manifest = keep(directory, minimum, directory / "out")
        kept = [score for path in manifest.shard_paths() for score in pq.read_table(path)["score"].to_pylist()]
    assert kept == [score for score in scores if score is not None and score >= minimum]
    counts = manifest.counts
    assert counts["kept"] + counts["dropped"] + counts["unscored"] == counts["read"] == len(scores)


def test_nothing_may_be_left(tmp_path):
    scored(tmp_path / "a.parquet", [1.0, None])
    manifest = keep(tmp_path / "a.parquet", 3.0, tmp_path / "out")
    assert (manifest.shards, manifest.counts["kept"], manifest.counts["dropped"]) == ([], 0, 1)


def test_whole_numbers_are_scores_and_a_shard_without_any_score_is_unscored(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "t", "score": 3}\n{"text": "u", "score": 2}\n')
    (tmp_path / "b.jsonl").write_text('{"text": "v", "score": null}\n')
    manifest = keep(tmp_path, 3, tmp_path / "out")
    assert table_of(manifest)["text"].to_pylist() == ["t"]
    assert manifest.counts["unscored"] == 1


def test_a_corpus_that_is_not_scored_is_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "t"}\n')
    with pytest.raises(InputError, match="has no column 'score'; make it with ml-filter score"):
        keep(tmp_path / "a.jsonl", 3, tmp_path / "a")
    (tmp_path / "b.jsonl").write_text('{"text": "t", "score": "high"}\n')
    with pytest.raises(InputError, match="column 'score' holds string, not numbers"):
        keep(tmp_path / "b.jsonl", 3, tmp_path / "b")


def test_a_finished_filter_is_returned_and_another_minimum_refused(tmp_path):
    scored(tmp_path / "a.parquet", [1.0, 4.0])
    first = keep(tmp_path / "a.parquet", 3, tmp_path / "out")
    assert keep(tmp_path / "a.parquet", 3, tmp_path / "out") == first
    with pytest.raises(InputError, match="other settings or input"):
        keep(tmp_path / "a.parquet", 2, tmp_path / "out")


def test_a_filtered_corpus_can_be_filtered_again(tmp_path):
    scored(tmp_path / "a.parquet", [1.0, 3.0, 4.0])
    keep(tmp_path / "a.parquet", 2, tmp_path / "first")
    second = keep(tmp_path / "first", 4, tmp_path / "second")
    assert table_of(second)["score"].to_pylist() == [4.0]
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


def test_several_criteria_choose_together_and_each_reason_is_counted(two_criteria, tmp_path):
    how = {"criterion": "educational", "conditions": ["adult<=1", "length >= 50"], "dropped": True}
    manifest = select(two_criteria, tmp_path / "out", min_score=3, **how)
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


def test_conditions_hold_before_the_best_are_chosen(two_criteria, tmp_path):
    condition = {"name": "adult", "op": "<", "value": 1.5}
    manifest = select(two_criteria, tmp_path / "a", keep_fraction=0.5, criterion="educational", conditions=[condition])
    assert kept_ids(manifest) == {"f", "a"}
    manifest = select(two_criteria, tmp_path / "b", keep_fraction=1, criterion="adult", conditions=["educational!=5"])
    assert kept_ids(manifest) == {"a", "c", "d"}
    assert manifest.config["selection"]["score_column"] == "score_adult"


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"min_score": 1}, "holds scores of educational, adult; choose one with --criterion"),
        ({"min_score": 1, "criterion": "harm"}, "has no scores of 'harm'; it has educational, adult"),
        (
            {"min_score": 1, "criterion": "adult", "conditions": ["harm<1"]},
            "has no score and no column 'harm' .for harm<1.; it has id, text, score_educational",
        ),
        ({"min_score": 1, "criterion": "adult", "conditions": ["text<1"]}, "column 'text' holds string, not numbers"),
        ({"keep_fraction": 1, "criterion": "adult", "quota": "source"}, "has no column 'source' for the quota; it has"),
        ({"keep_fraction": 1, "criterion": "adult", "quota": "host"}, "has no column 'host' for the quota; it has"),
        ({"token_budget": 9, "criterion": "adult", "token_column": "n"}, "has no token column 'n'; it has"),
    ],
)
def test_what_is_not_there_is_named_with_what_is(config, says, two_criteria, tmp_path):
    with pytest.raises(InputError, match=says):
        select(two_criteria, tmp_path / "out", **config)


def test_a_score_without_a_name_is_not_asked_for_by_one(tmp_path):
    source = write_shards(tmp_path / "in", [rows_of([1.0])])
    with pytest.raises(InputError, match="has one score, which has no name: leave criterion 'edu' out"):
        select(source, tmp_path / "out", min_score=0, criterion="edu")


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({}, "give one of min_score, keep_fraction, token_budget; given: none"),
        ({"min_score": 3, "token_budget": 5}, "given: min_score, token_budget .null, as in min_score=null"),
        ({"min_score": 3, "quota": "language"}, "quota and weighted need keep_fraction or token_budget"),
        ({"min_score": 3, "weighted": True}, "quota and weighted need keep_fraction or token_budget"),
        ({"keep_fraction": 0}, "keep_fraction"),
        ({"token_budget": 5, "tokenizer": "a", "token_column": "b"}, "give tokenizer or token_column, not both"),
        ({"min_score": 3, "conditions": ["adult"]}, "'adult' is not of the form adult<=1"),
        ({"min_score": 3, "conditions": ["adult<=low"]}, "conditions.0.value"),
        ({"keep_fraction": 0.5, "quota": {"by": ["a"], "split": "proportional"}}, "divide a token_budget"),
        ({"token_budget": 5, "quota": {"by": ["a"], "shares": {"b": 0.5}}}, "shares add up to 0.5, not to 1"),
        ({"token_budget": 5, "quota": {"by": ["a"], "tokens": {"b": 9}}}, "add up to 9, more than token_budget .5."),
        ({"token_budget": 5, "quota": {"by": ["a"], "fractions": {"b": 0.5}}}, "quota.fractions need keep_fraction"),
        ({"token_budget": 5, "quota": {"by": ["a"], "tokens": {"b": 1}, "shares": {"b": 1}}}, "give one of shares"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(config, says):
    with pytest.raises(ValidationError) as refused:
        FilterConfig.model_validate(config)
    assert re.search(says, problems_in(refused.value, "filter"))


def test_conditions_read_as_they_are_written():
    conditions = FilterConfig(min_score=1, conditions=["adult<=1", " a b = -2.50 ", "x!=1e3"]).conditions
    assert [str(condition) for condition in conditions] == ["adult<=1", "a b==-2.5", "x!=1000"]
    assert FilterConfig.model_validate(FilterConfig(min_score=1, conditions=conditions).model_dump(mode="json"))


# --- What is dropped -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "reason"), [({"min_score": 3}, "below_min_score"), ({"keep_fraction": 0.5}, "over_fraction")]
)
def test_kept_and_dropped_documents_are_together_the_input(how, reason, tmp_path):
    before = scored(tmp_path / "a.parquet", [2.9, 3.0, None, 3.1, 0.0], dropped_reason=["mine"] * 5)
    manifest = select(SourceConfig(paths=[str(tmp_path / "a.parquet")]), tmp_path / "out", **how, dropped=True)
    aside = find_manifest(f"{manifest.root}/dropped")
    assert (aside.kind, aside.counts["unscored"], aside.counts[f"dropped_{reason}"]) == ("dropped", 1, 2)
    left = table_of(aside)
    assert left.column_names == [*before.column_names[:-1], "input_dropped_reason", "dropped_reason"]
    assert dict(zip(left["id"].to_pylist(), left["dropped_reason"].to_pylist(), strict=True)) == {
        "a-0": reason,
        "a-2": "unscored",
        "a-4": reason,
    }
    assert table_of(manifest).equals(before.take([1, 3]))


def test_nothing_is_written_aside_unless_asked_for(tmp_path):
    scored(tmp_path / "a.parquet", [1.0, 4.0])
    keep(tmp_path / "a.parquet", 3, tmp_path / "out")
    assert not (tmp_path / "out" / "dropped").exists()


# --- Real heads, and the command line --------------------------------------------------------------------------------


def test_a_corpus_that_a_head_of_two_criteria_scored_is_selected_by_both(documents, tmp_path):
    labelled = tmp_path / "labelled.jsonl"
    rows = [{**row, "prose": i % 6, "length": min(len(row["text"]) / 2000, 5)} for i, row in enumerate(documents)]
    labelled.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = SourceConfig(paths=[str(labelled)])
    head = train_head(source, TrainConfig(engine="hashing", label_column=["prose", "length"]), tmp_path / "head")
    scored = score_corpus(head.directory, source, ScoreConfig(), tmp_path / "scored")
    how = {"criterion": "length", "conditions": ["prose>=2"], "quota": "source"}
    manifest = select(SourceConfig(paths=[scored.root]), tmp_path / "out", token_budget=20_000, **how)
    kept = read_rows(manifest)
    assert 0 < len(kept) < len(rows)
    assert all(row["score_prose"] >= 2 for row in kept)
    counts = TokenCounter().count([row["text"] for row in kept])
    assert manifest.counts["tokens_kept"] == counts.sum() <= 20_000
    assert manifest.parents[0].digest == scored.digest


def test_the_command_line_selects_and_says_how(tmp_path):
    rows = rows_of([5, 4, 3, None], tokens=[10] * 4, language=["deu", "deu", "spa", "spa"], adult=[0, 0, 2, 0])
    write_shards(tmp_path / "in", [rows])
    line = ["--token-budget", "1_000", "--token-column", "tokens", "--where", "adult<=1", "--quota", "language"]
    line += ["--quota-share", "deu=0.75", "--quota-share", "spa=0.25", "--dropped", "-o", str(tmp_path / "out")]
    done = ml_filter("filter", str(tmp_path / "in"), *line)
    assert done.returncode == 0, done.stderr
    shown = [part.split() for part in done.stdout.splitlines()]
    assert ["deu", "20", "750", "20", "20", "4.000"] in shown
    assert ["tokens", "kept", "20"] in shown
    assert find_manifest(str(tmp_path / "out" / "dropped")).counts["dropped_condition:adult<=1"] == 1
    config = tmp_path / "filter.yaml"
    config.write_text("filter: { keep_fraction: 0.67, conditions: [adult<=1] }\n")
    done = ml_filter("filter", str(tmp_path / "in"), "--config", str(config), "-o", str(tmp_path / "other"))
    assert "threshold 5 (score)" in done.stdout


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--min-score", "3", "--keep-fraction", "0.1"], "give one of min_score, keep_fraction, token_budget; given:"),
        ([], "give one of min_score, keep_fraction, token_budget; given: none"),
        (
            ["--keep-fraction", "0.1", "--quota", "source"],
            "has no column 'source' for the quota; it has id, text, score",
        ),
        (["--keep-fraction", "0.1", "--quota-split", "equal"], "need --quota"),
        (["--token-budget", "5", "--quota", "id", "--quota-share", "deu"], "is not of the form VALUE=SHARE"),
        (["--token-budget", "5", "--tokenizer", "BROKEN"], "cannot be loaded; give a Hub name or a directory"),
    ],
)
def test_bad_options_end_with_exit_code_2_and_the_reason(options, says, tmp_path):
    write_shards(tmp_path / "in", [rows_of([1.0])])
    (tmp_path / "tokenizer.json").write_text("{")
    options = [str(tmp_path) if option == "BROKEN" else option for option in options]
    done = ml_filter("filter", str(tmp_path / "in"), *options, "-o", str(tmp_path / "out"))
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr


# --- Killed ----------------------------------------------------------------------------------------------------------

FILTER = """
import sys
from ml_filter.selection.select import filter_corpus
from ml_filter.selection.config import FilterConfig
from ml_filter.documents.config import SourceConfig
filter_corpus(SourceConfig(paths=[sys.argv[1]]), FilterConfig(min_score=3), sys.argv[2])
"""


def test_killed_at_any_shard_and_run_again_it_gives_the_same_bytes(tmp_path):
    corpus, killed = tmp_path / "corpus", tmp_path / "killed"
    corpus.mkdir()
    for number in range(100):
        rows = [{"id": f"{number}-{i}", "text": "t", "score": i % 6} for i in range(50)]
        (corpus / f"part-{number:03d}.jsonl").write_text("\n".join([*map(json.dumps, rows), "{broken"]))
    for done in (10, 40):
        running = subprocess.Popen([sys.executable, "-c", FILTER, str(corpus), str(killed)], stderr=subprocess.DEVNULL)
        while running.poll() is None and len(list(killed.glob("shards/*.parquet"))) < done:
            time.sleep(0.001)
        running.kill()
        running.wait()
        assert find_manifest(str(killed)) is None
    kept = {path: path.stat().st_mtime_ns for path in killed.glob("shards/*.parquet")}
    assert 40 <= len(kept) < 100
    again, whole = keep(corpus, 3, killed), keep(corpus, 3, tmp_path / "whole")
    assert again.digest == whole.digest
    assert again.counts["rejected"] == 100
    for name in ["rejects.jsonl", *(shard.path for shard in whole.shards)]:
        digests = {hashlib.sha256((root / name).read_bytes()).hexdigest() for root in (killed, tmp_path / "whole")}
        assert len(digests) == 1
    untouched = [path for path in kept if path.stat().st_mtime_ns == kept[path]]
    assert len(untouched) >= len(kept) - 1  # the last may have been in place without being marked as done
