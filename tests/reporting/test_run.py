"""The report of a run: does it say what happened, and does it warn where the head cannot judge?"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ml_filter.documents.config import SourceConfig
from ml_filter.errors import InputError
from ml_filter.heads.config import TrainConfig
from ml_filter.heads.train import read_head, train_head
from ml_filter.reporting.run import report_filtered, run_report, write_run_report
from ml_filter.scoring.config import ScoreConfig
from ml_filter.scoring.run import score_corpus
from ml_filter.selection.config import FilterConfig
from ml_filter.selection.select import filter_corpus

LEARNED, PLAIN = ([f"{kind}{letter}" for letter in "abcdefghijklmnopqrst"] for kind in ("theorem", "offer"))


def text_of(label, random):
    """Words of which a share that grows with the label is learned."""
    return " ".join(random.choice(LEARNED if random.random() < label / 5 else PLAIN) for _ in range(80))


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    directory, random = tmp_path_factory.mktemp("head"), np.random.default_rng(0)
    rows = [{"text": text_of(label, random), "label": label} for label in random.uniform(0, 5, 400)]
    (directory / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train_head(
        SourceConfig(paths=[str(directory / "labels.jsonl")]),
        TrainConfig(engine="hashing", label_column="label"),
        directory / "head",
    )
    return read_head(directory / "head")


@pytest.fixture
def report(head, tmp_path):
    """What a run over documents says, with the settings of the filter."""

    def run(documents, **chosen):
        pq.write_table(pa.Table.from_pylist(documents), tmp_path / "corpus.parquet")
        source = SourceConfig(paths=[str(tmp_path / "corpus.parquet")])
        scored = score_corpus(head.directory, source, ScoreConfig(), tmp_path / "scored")
        filtered = filter_corpus(SourceConfig(paths=[scored.root]), FilterConfig(**chosen), tmp_path / "filtered")
        return run_report(head, scored, filtered), scored, filtered

    return run


@pytest.fixture
def alike():
    """Documents like those of the training, in two languages by name."""
    random = np.random.default_rng(1)
    return [
        {"id": str(i), "text": text_of(label, random), "language": "en" if i % 3 else "de"}
        for i, label in enumerate(random.uniform(0, 5, 300))
    ]


def test_documents_like_those_of_the_training_give_no_warning(report, alike):
    made, _, _ = report(alike, min_score=3)
    assert made.warnings == []
    assert not any(shift.is_shifted for shift in made.shifts)


def test_counts_add_up_overall_and_by_language(report, alike):
    made, scored, filtered = report(alike, min_score=3)
    assert made.corpus.documents == scored.counts["scored"] == sum(made.scores.counts) == 300
    assert made.corpus.characters == sum(len(row["text"]) for row in alike)
    by_language = made.corpus.strata["language"]
    assert {value: of.documents for value, of in by_language.items()} == {"en": 200, "de": 100}
    assert sum(of.kept for of in by_language.values()) == filtered.rows == made.kept


def test_the_datasheet_says_what_scores_and_shards_were_made_with(report, alike, head):
    _, scored, filtered = report(alike, min_score=3)
    scored.made_with = {"engine": "openvino", "dtype": "bfloat16", "device": "cpu", "reason": "as the settings say"}
    made = run_report(head, scored, filtered)
    sheet = made.to_datasheet()
    assert "| scored with | `openvino in bfloat16 on cpu: as the settings say` |" in sheet
    assert "| shards | `1, each of the input shard it is named after; digests in manifest.json` |" in sheet


def test_hours_throughput_and_cost_follow_from_the_seconds_of_the_workers(report, alike, head):
    made, scored, filtered = report(alike, min_score=3)
    assert made.effort.usd is None
    scored.seconds = 1800
    made = run_report(head, scored, filtered, usd_per_worker_hour=3)
    assert (made.effort.hours, made.effort.usd) == (0.5, 1.5)
    assert made.effort.documents_per_second == 300 / 1800
    page = made.to_html()
    assert "0.5 hours, summed over the workers, $1.50" in page
    assert "take 1,667 hours and $5000.00" in page


def test_another_script_is_out_of_the_heads_depth(report, alike):
    foreign = [{"id": f"x{i}", "text": "Вода кључа на сто степени. " * 20, "language": "sr"} for i in range(30)]
    made, _, _ = report(alike + foreign, min_score=3)
    (warning, *_) = made.warnings
    assert "out of its depth: 9.1% of the documents are written in CYRILLIC, 0.0% of those" in warning


def test_a_corpus_of_worse_documents_has_shifted(report):
    random = np.random.default_rng(2)
    made, _, _ = report([{"text": text_of(0.3, random)} for _ in range(200)], min_score=3)
    assert any("distribution of score (label) is unlike" in warning for warning in made.warnings)


def test_the_threshold_promises_what_the_calibration_knows(report, alike):
    made, _, _ = report(alike, min_score=3)
    assert made.expected.score == 3
    assert made.expected.precision.value > 0.8


def test_examples_stand_on_their_side_of_the_threshold(report, alike):
    made, _, _ = report(alike, min_score=3)
    assert made.corpus.above
    assert made.corpus.below
    assert all(3 <= example.score <= 3.25 for example in made.corpus.above)
    assert all(2.75 <= example.score < 3 for example in made.corpus.below)


def test_a_quota_has_no_single_threshold_and_says_how_it_was_chosen(report, alike):
    made, _, _ = report(alike, keep_fraction=0.1, quota="language")
    assert made.threshold is None
    assert made.corpus.above == made.corpus.below == []
    assert made.chosen == "the best documents by score, up to 10% of those that were scored, divided over language"
    assert made.corpus.strata["language"]["de"].kept == 10


def test_page_data_and_datasheet_lie_beside_the_documents(report, head, alike):
    hostile = {"id": "h", "text": "<script>alert(1)</script> " * 20, "language": "a|b"}
    _, scored, filtered = report([*alike, hostile], min_score=0)
    path, page = write_run_report(head, scored, filtered)
    assert "<script>alert" not in page
    assert Path(path).read_text() == page
    root = Path(filtered.root)
    assert json.loads((root / "report.json").read_text())["corpus"]["documents"] == 301
    datasheet = (root / "DATASHEET.md").read_text()
    assert "| a\\|b | 1 | 1 |" in datasheet
    assert head.digest in datasheet


# --- The command -----------------------------------------------------------------------------------------------------


def ml_filter(*arguments):
    command = [sys.executable, "-m", "ml_filter.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_command_writes_the_same_report_from_what_the_manifests_say(report, alike, tmp_path):
    made, _, _ = report(alike, min_score=3)
    done = ml_filter("report", tmp_path / "filtered")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"in {tmp_path}/filtered/report.html\n"
    assert json.loads((tmp_path / "filtered" / "report.json").read_text()) == made.model_dump(mode="json")
    assert "300 documents kept" in (tmp_path / "filtered" / "DATASHEET.md").read_text()


def test_what_was_moved_is_named_and_what_is_another_is_refused(report, alike, head, tmp_path):
    report(alike, min_score=3)
    filtered, moved = tmp_path / "filtered", tmp_path / "moved"
    with pytest.raises(InputError, match="scored holds scored, not filtered documents; make them with filter"):
        report_filtered(tmp_path / "scored")
    (tmp_path / "scored").rename(moved)
    with pytest.raises(InputError, match=r"scored holds no manifest\.json"):
        report_filtered(filtered)
    path, page = report_filtered(filtered, scored=moved, usd_per_worker_hour=3600)
    assert Path(path).read_text() == page

    other = Path(shutil.copytree(head.directory, tmp_path / "other"))
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "note": "changed"}))
    with pytest.raises(InputError, match=r"other is not the head that scored .*moved; name that with --head"):
        report_filtered(filtered, scored=moved, head=other)
    manifest = json.loads((moved / "manifest.json").read_text())
    (moved / "manifest.json").write_text(json.dumps({**manifest, "config_digest": "other"}))
    with pytest.raises(InputError, match=r"moved is not the corpus that .*filtered was chosen from"):
        report_filtered(filtered, scored=moved)
