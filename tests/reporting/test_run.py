"""The report of a run: figures, warnings, and files beside the filtered documents."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ml_filter.cli import main
from ml_filter.documents.config import SourceConfig
from ml_filter.errors import InputError
from ml_filter.heads.config import TrainConfig
from ml_filter.heads.store import read_head
from ml_filter.heads.train import train_head
from ml_filter.reporting import corpus as corpus_module
from ml_filter.reporting.config import DriftConfig
from ml_filter.reporting.run import report_filtered, run_report, write_run_report
from ml_filter.scoring.config import ScoreConfig
from ml_filter.scoring.run import score_corpus
from ml_filter.selection.config import FilterConfig
from ml_filter.selection.select import filter_corpus
from tests.small import sign_head

pytestmark = pytest.mark.model

LEARNED, PLAIN = ([f"{kind}{letter}" for letter in "abcdefghijklmnopqrst"] for kind in ("theorem", "offer"))


def text_of(label, random):
    """80 words; the share of learned ones grows with the label."""
    return " ".join(random.choice(LEARNED if random.random() < label / 5 else PLAIN) for _ in range(80))


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    directory, random = tmp_path_factory.mktemp("head"), np.random.default_rng(0)
    rows = [{"text": text_of(label, random), "label": label} for label in random.uniform(0, 5, 400)]
    (directory / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train_head(
        SourceConfig(paths=[str(directory / "labels.jsonl")]),
        TrainConfig(kind="hashing", label_column="label"),
        directory / "head",
    )
    return read_head(directory / "head")


@pytest.fixture
def report(head, tmp_path):
    """Score and filter documents, and return the report and both manifests."""

    def run(documents, **settings):
        pq.write_table(pa.Table.from_pylist(documents), tmp_path / "corpus.parquet")
        source = SourceConfig(paths=[str(tmp_path / "corpus.parquet")])
        scored = score_corpus(head.origin, source, ScoreConfig(), tmp_path / "scored")
        filtered = filter_corpus(SourceConfig(paths=[scored.root]), FilterConfig(**settings), tmp_path / "filtered")
        return run_report(head, scored, filtered), scored, filtered

    return run


@pytest.fixture
def similar():
    """Documents like the training documents, with a column `language`."""
    random = np.random.default_rng(1)
    return [
        {"id": str(i), "text": text_of(label, random), "language": "en" if i % 3 else "de"}
        for i, label in enumerate(random.uniform(0, 5, 300))
    ]


def test_a_corpus_like_the_training_documents_gives_no_warning(report, similar):
    result, _, _ = report(similar, min_score=3)
    assert result.warnings == []
    assert not any(shift.is_shifted for shift in result.shifts)


def test_counts_add_up_overall_and_by_language(report, similar):
    result, scored, filtered = report(similar, min_score=3)
    assert result.corpus.documents == scored.counts["scored"] == sum(result.scores.counts) == 300
    assert result.corpus.characters == sum(len(row["text"]) for row in similar)
    by_language = result.corpus.strata["language"]
    assert {value: stratum.documents for value, stratum in by_language.items()} == {"en": 200, "de": 100}
    assert sum(stratum.kept for stratum in by_language.values()) == filtered.rows == result.kept


def test_the_datasheet_states_how_the_corpus_was_scored(report, similar, head):
    _, scored, filtered = report(similar, min_score=3)
    scored.made_with = {
        "engine": "openvino",
        "dtype": "bfloat16",
        "device": "cpu",
        "reason": "set in the configuration",
    }
    result = run_report(head, scored, filtered)
    sheet = result.to_datasheet()
    assert "| scored with | `openvino in bfloat16 on cpu: set in the configuration` |" in sheet
    assert "| shards | `1, one per input shard and with its name; digests in manifest.json` |" in sheet


def test_hours_throughput_and_cost_follow_from_the_workers_seconds(report, similar, head):
    result, scored, filtered = report(similar, min_score=3)
    assert result.effort.usd is None
    scored.seconds = 1800
    result = run_report(head, scored, filtered, usd_per_worker_hour=3)
    assert (result.effort.hours, result.effort.usd) == (0.5, 1.5)
    assert result.effort.documents_per_second == 300 / 1800
    page = result.to_html()
    assert "0.5 hours, summed over the workers, $1.50" in page
    assert "take 1,667 hours and $5000.00" in page


def test_documents_in_an_unknown_script_are_reported_as_out_of_distribution(report, similar):
    cyrillic = [{"id": f"x{i}", "text": "Вода кључа на сто степени. " * 20, "language": "sr"} for i in range(30)]
    result, _, _ = report(similar + cyrillic, min_score=3)
    (warning, *_) = result.warnings
    assert "Out of distribution: 9.1% of the documents are written in CYRILLIC, but only 0.0% of" in warning


def test_a_corpus_of_worse_documents_is_reported_as_shifted(report):
    random = np.random.default_rng(2)
    result, _, _ = report([{"text": text_of(0.3, random)} for _ in range(200)], min_score=3)
    assert any("distribution of score (label) differs from" in warning for warning in result.warnings)


def test_drift_is_what_exceeds_the_limits_and_is_in_the_report(report, similar, head):
    _, scored, filtered = report([{**row, "text": f"Привет {row['text']}"} for row in similar], min_score=2.5)
    assert run_report(head, scored, filtered).drift == []
    assert run_report(head, scored, filtered, drift=DriftConfig()).drift == []
    cyrillic = [{"text": "Вода кипит при ста градусах. " * 10} for _ in range(20)]
    shutil.rmtree(Path(scored.root))
    shutil.rmtree(Path(filtered.root))
    _, scored, filtered = report([*similar, *cyrillic], min_score=2.5)
    result = run_report(head, scored, filtered, drift=DriftConfig(max_shift=9, max_unknown_share=0.02))
    share = len(cyrillic) / (len(similar) + len(cyrillic))
    assert result.drift == [
        f"{share:.1%} of the documents are in scripts that the head does not know (CYRILLIC), above 2.0%"
    ]
    assert result.warnings[0] == f"Drift: {result.drift[0]}."
    assert run_report(head, scored, filtered, drift=DriftConfig(max_shift=9, max_unknown_share=0.99)).drift == []
    [reason, *_] = run_report(head, scored, filtered, drift=DriftConfig(max_shift=0.01, max_unknown_share=1)).drift
    assert "to the training documents, above 0.01" in reason


def test_the_expected_precision_is_that_of_the_calibration(report, similar):
    result, _, _ = report(similar, min_score=3)
    assert result.expected.score == 3
    assert result.expected.precision.value > 0.8


def test_too_few_good_labels_are_said_instead_of_a_precision(head, report, similar):
    _, scored, filtered = report(similar, min_score=3)
    [criterion] = head.info.criteria
    labels = {0: 300, 1: 11, 3: 9}
    few = criterion.model_copy(update={"calibration": criterion.calibration.model_copy(update={"labels": labels})})
    info = head.info.model_copy(update={"criteria": [few]}).model_dump(mode="json")
    result = run_report(head.model_copy(update={"config": {**head.config, "head": info}}), scored, filtered)
    assert result.too_few_labels == "too few labels: 9 of 320 at or above 3"
    assert f"Unknown: {result.too_few_labels}" in result.to_html()
    assert "precision" not in result.to_datasheet()


def test_examples_are_on_their_side_of_the_threshold(report, similar):
    result, _, _ = report(similar, min_score=3)
    assert result.corpus.above
    assert result.corpus.below
    assert all(3 <= example.score <= 3.25 for example in result.corpus.above)
    assert all(2.75 <= example.score < 3 for example in result.corpus.below)


def test_a_selection_with_quotas_has_no_single_threshold(report, similar):
    result, _, _ = report(similar, keep_fraction=0.1, quota="language")
    assert result.threshold is None
    assert result.corpus.above == result.corpus.below == []
    assert result.chosen == "the best documents by score, up to 10% of the scored documents, with quotas by language"
    assert result.corpus.strata["language"]["de"].kept == 10


def test_page_data_and_datasheet_are_written_beside_the_documents(report, head, similar):
    hostile = {"id": "h", "text": "<script>alert(1)</script> " * 20, "language": "a|b"}
    _, scored, filtered = report([*similar, hostile], min_score=0)
    path, page, _ = write_run_report(head, scored, filtered)
    assert "<script>alert" not in page
    assert Path(path).read_text() == page
    root = Path(filtered.root)
    assert json.loads((root / "report.json").read_text())["corpus"]["documents"] == 301
    datasheet = (root / "DATASHEET.md").read_text()
    assert "| a\\|b | 1 | 1 |" in datasheet
    assert head.digest in datasheet


# --- The command -----------------------------------------------------------------------------------------------------


def test_the_command_finds_corpus_and_head_by_lineage_and_writes_the_same_report(report, similar, tmp_path, capsys):
    result, _, _ = report(similar, min_score=3)
    capsys.readouterr()
    assert main(["report", str(tmp_path / "filtered")]) == 0
    assert capsys.readouterr().out == f"in {tmp_path}/filtered/report.html\n"
    assert json.loads((tmp_path / "filtered" / "report.json").read_text()) == result.model_dump(mode="json")
    assert "300 documents kept" in (tmp_path / "filtered" / "DATASHEET.md").read_text()


def test_a_moved_corpus_or_head_can_be_named_and_a_wrong_one_is_an_error(report, similar, head, tmp_path):
    report(similar, min_score=3)
    filtered, moved = tmp_path / "filtered", tmp_path / "moved"
    with pytest.raises(InputError, match="scored holds scored, not filtered documents; make them with filter"):
        report_filtered(tmp_path / "scored")
    (tmp_path / "scored").rename(moved)
    with pytest.raises(InputError, match="scored does not exist"):
        report_filtered(filtered)
    path, page, _ = report_filtered(filtered, scored=moved, usd_per_worker_hour=3600)
    assert Path(path).read_text() == page

    other = Path(shutil.copytree(head.origin, tmp_path / "other"))
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "note": "changed"}))
    sign_head(other)
    with pytest.raises(InputError, match=r"other is not the head that scored .*moved; pass that head with --head"):
        report_filtered(filtered, scored=moved, head=other)
    manifest = json.loads((moved / "manifest.json").read_text())
    (moved / "manifest.json").write_text(json.dumps({**manifest, "config_digest": "other"}))
    with pytest.raises(InputError, match=r"moved is not the corpus that .*filtered was selected from"):
        report_filtered(filtered, scored=moved)


def test_the_report_of_a_grown_corpus_reads_what_is_new_and_has_the_figures_of_one_from_nothing(
    head, similar, tmp_path, monkeypatch
):
    def write(name, documents):
        (tmp_path / "corpus").mkdir(exist_ok=True)
        pq.write_table(pa.Table.from_pylist(documents), tmp_path / "corpus" / f"{name}.parquet")

    def make_report(output):
        source = SourceConfig(paths=[str(tmp_path / "corpus")])
        scored = score_corpus(head.origin, source, ScoreConfig(), output / "scored")
        config = FilterConfig(min_score=3)
        filtered = filter_corpus(SourceConfig(paths=[scored.root]), config, output / "filtered")
        write_run_report(head, scored, filtered)
        report = json.loads((output / "filtered" / "report.json").read_text())
        return {name: report[name] for name in ("corpus", "shifts", "warnings", "expected", "title")}, report["facts"]

    for name, start in (("b", 0), ("d", 60)):
        write(name, similar[start : start + 60])
    make_report(tmp_path / "grown")
    read: list[str] = []
    with monkeypatch.context() as patch:
        read_tables = corpus_module.read_tables
        patch.setattr(corpus_module, "read_tables", lambda path, *rest: read.append(path) or read_tables(path, *rest))
        write("a", similar[120:180])
        write("c", similar[180:])
        (tmp_path / "corpus" / "d.parquet").unlink()
        figures, facts = make_report(tmp_path / "grown")
        assert [Path(path).name[0] for path in read] == ["a", "c", "a", "c"]
        assert facts["new shards"] == "2 scored by the last run that had new ones, 1 before"
        assert figures["corpus"]["documents"] == 240
        read.clear()
        assert make_report(tmp_path / "grown") == (figures, facts)
        assert read == []
    at_once, facts = make_report(tmp_path / "at-once")
    assert figures == at_once
    assert "new shards" not in facts
    kept = [(tmp_path / name / "filtered" / ".report.jsonl").read_bytes() for name in ("grown", "at-once")]
    assert kept[0] == kept[1]


def test_a_report_about_a_scored_corpus_that_has_grown_since_names_the_command_to_run(head, similar, tmp_path):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for name in "ab":
        pq.write_table(pa.Table.from_pylist(similar[:20]), corpus / f"{name}.parquet")
        scored = score_corpus(head.origin, SourceConfig(paths=[str(corpus)]), ScoreConfig(), tmp_path / "scored")
        if name == "a":
            filter_corpus(SourceConfig(paths=[scored.root]), FilterConfig(min_score=3), tmp_path / "filtered")
    with pytest.raises(InputError, match=r"scored has changed since .*filtered was selected from it; run the filter"):
        report_filtered(tmp_path / "filtered")


def test_a_column_with_very_many_values_is_counted_exactly_for_the_first_of_them(head, tmp_path):
    rows = [{"id": str(i), "text": f"text {i}", "source": f"source {i % 1500}"} for i in range(3000)]
    (tmp_path / "corpus").mkdir()
    for number in range(2):
        part = pa.Table.from_pylist(rows[1500 * number :][:1500])
        pq.write_table(part, tmp_path / "corpus" / f"{number}.parquet")
    source = SourceConfig(paths=[str(tmp_path / "corpus")])
    scored = score_corpus(head.origin, source, ScoreConfig(), tmp_path / "scored")
    filtered = filter_corpus(SourceConfig(paths=[scored.root]), FilterConfig(min_score=0), tmp_path / "filtered")
    strata = run_report(head, scored, filtered).corpus.strata["source"]
    assert {(s.documents, s.kept) for name, s in strata.items() if name != "(others)"} == {(2, 2)}
    assert (len(strata), strata["(others)"].documents) == (1001, 1000)
