"""Agreement measured from files: the output, strata, resumed runs, and the page."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from ml_filter.agreement.agreement import (
    AGREEMENT_NAME,
    REPORT_NAME,
    Agreement,
    agreement_plots,
    agreement_report,
    compare_ratings,
    measure_agreement,
)
from ml_filter.agreement.config import AgreementConfig
from ml_filter.agreement.ratings import Ratings, read_ratings
from ml_filter.cli.command import app
from ml_filter.documents.config import SourceConfig
from ml_filter.documents.manifest import read_manifest
from ml_filter.errors import InputError
from ml_filter.statistics.intervals import Figure
from tests.kills import Killed, kill_at
from tests.written import write_annotations


def rated_file(path: Path, documents: int = 60) -> str:
    """Documents in two languages with a human score, a good rater, and one that is good in English only."""
    random = np.random.default_rng(0)
    rows = []
    for number in range(documents):
        human = int(random.integers(0, 6))
        german = number % 3 == 0
        good = float(np.clip(human + random.normal(0, 0.7), 0, 5))
        english_only = float(random.uniform(0, 5)) if german else good
        rows.append({"id": f"d{number}", "language": "de" if german else "en", "human_score": human})
        rows[-1] |= {"good": good, "english only": english_only}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def config(path: str, **options) -> AgreementConfig:
    options = {"rating_columns": ["good", "english only"], "resamples": 100, "by": ["language"], **options}
    return AgreementConfig(gold=SourceConfig(paths=[path]), **options)


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> tuple[Agreement, Path]:
    directory = tmp_path_factory.mktemp("measured")
    path = rated_file(directory / "rated.jsonl")
    return measure_agreement([path], config(path), directory / "out")[0], directory / "out"


def without_config(agreement: Agreement) -> dict:
    return agreement.model_dump(exclude={"config", "inputs"})


def test_output_has_figures_page_plots_and_manifest(measured):
    agreement, directory = measured
    names = {path.name for path in directory.iterdir() if not path.name.startswith(".")}
    plots = {
        "distribution.svg",
        "differences.svg",
        "confusion.svg",
        "strata_spearman.svg",
        "strata_kappa_quadratic.svg",
    }
    assert names == {AGREEMENT_NAME, REPORT_NAME, "manifest.json", "rejects.jsonl", *plots}
    written = json.loads((directory / AGREEMENT_NAME).read_text())
    assert Agreement.model_validate(written) == agreement
    spearman = written["overall"]["pairs"][0]["figures"]["spearman"]
    assert spearman["low"] < spearman["value"] < spearman["high"]
    assert spearman["documents"] == 60
    manifest = read_manifest(str(directory))
    assert (manifest.kind, manifest.counts["documents"], manifest.counts["raters"]) == ("agreement", 60, 3)
    assert [parent.digest for parent in manifest.parents] == [rated["digest"] for rated in written["inputs"]]
    for name in plots:
        assert (directory / name).read_text().startswith("<svg")


def test_page_is_self_contained_and_shows_figures_and_plots(measured):
    agreement, directory = measured
    page = (directory / REPORT_NAME).read_text()
    assert page.count("<svg") == 5
    for reference in ("<script", "<link", "<img", "url(http"):
        assert reference not in page
    figure = agreement.strata["language"]["de"].pairs[0].figures["spearman"]
    assert f"{figure.value:.3f}" in page
    assert "language=de" in page
    assert "nan" not in page


def test_stratum_has_the_figures_of_its_documents(measured):
    agreement, directory = measured
    both = agreement.strata["language"]
    assert {name: section.documents for name, section in both.items()} == {"de": 20, "en": 40}
    spearman = {name: [p.figures["spearman"].value for p in section.pairs] for name, section in both.items()}
    gold_good, gold_english_only, good_english_only = range(3)
    assert min(spearman["en"]) > 0.8
    assert spearman["de"][gold_good] > 0.8
    assert max(spearman["de"][gold_english_only], spearman["de"][good_english_only]) < 0.6
    german = directory.parent / "german.jsonl"
    rows = map(json.loads, (directory.parent / "rated.jsonl").read_text().splitlines())
    german.write_text("".join(json.dumps(row) + "\n" for row in rows if row["language"] == "de"))
    alone, _ = measure_agreement([str(german)], config(str(german), by=[]), directory.parent / "german")
    assert alone.overall == both["de"]


def test_gold_is_the_reference_and_not_in_the_group(measured):
    agreement, _ = measured
    assert agreement.gold == "human_score"
    assert [(pair.reference, pair.rater) for pair in agreement.overall.pairs] == [
        ("human_score", "good"),
        ("human_score", "english only"),
        ("good", "english only"),
    ]
    assert agreement.overall.group.raters == ["good", "english only"]


def test_gold_is_in_the_group_if_there_is_one_other_rater(tmp_path):
    path = rated_file(tmp_path / "rated.jsonl")
    agreement, _ = measure_agreement([path], config(path, rating_columns=["good"]), tmp_path / "out")
    assert agreement.overall.group.raters == ["human_score", "good"]


SCORES = st.lists(st.tuples(*[st.sampled_from([0.0, 1.0, 2.5, 4.0, 5.0, np.nan])] * 3), min_size=4, max_size=12)


def ratings_of(scores: list[tuple[float, ...]], failed: np.ndarray) -> Ratings:
    documents = [f"d{i}" for i in range(len(scores))]
    return Ratings(
        documents=documents,
        raters=["a", "b", "c"],
        values=np.array(scores),
        failed=failed,
        columns={"half": [str(i % 2) for i in range(len(scores))]},
        has_gold=False,
        score_range=(0, 5),
        threshold=3,
        inputs=[],
    )


@settings(max_examples=10, deadline=None)
@given(SCORES, st.integers(0, 2**36))
def test_failed_documents_change_only_the_share_failed(scores, bits):
    drawn = np.array([[bool(bits >> (3 * i + j) & 1) for j in range(3)] for i in range(len(scores))])
    failed = drawn & np.isnan(np.array(scores))
    options = AgreementConfig(resamples=100)
    some = compare_ratings(ratings_of(scores, failed), options)
    none = compare_ratings(ratings_of(scores, np.zeros_like(failed)), options)
    for name, section in some.sections().items():
        other = none.sections()[name]
        assert section.model_dump(exclude={"share_failed"}) == other.model_dump(exclude={"share_failed"})
    for column, rater in enumerate("abc"):
        attempted = (np.isfinite(np.array(scores)[:, column]) | failed[:, column]).sum()
        share: Figure = some.overall.share_failed[rater]
        assert share.value == (pytest.approx(failed[:, column].sum() / attempted) if attempted >= 3 else None)
        assert some.raters[column].failed == failed[:, column].sum()


def test_failed_annotations_are_counted_but_not_compared(tmp_path):
    votes = [(f"d{i}", float(i % 6)) for i in range(20)]
    a = write_annotations(tmp_path / "a", votes, annotator="a")
    b = write_annotations(tmp_path / "b", [(d, None if i < 5 else s) for i, (d, s) in enumerate(votes)], annotator="b")
    agreement, manifest = measure_agreement([str(a), str(b)], AgreementConfig(resamples=100), tmp_path / "out")
    assert agreement.overall.pairs[0].documents == 15
    assert agreement.overall.pairs[0].figures["kappa"].value == 1
    assert agreement.overall.share_failed["b"].value == 0.25
    assert (agreement.raters[1].documents, agreement.raters[1].failed, manifest.counts["failed"]) == (15, 5, 5)


def test_finished_output_is_reused_and_other_settings_are_an_error(measured, tmp_path):
    agreement, directory = measured
    path = str(directory.parent / "rated.jsonl")
    before = (directory / AGREEMENT_NAME).stat().st_mtime_ns
    assert measure_agreement([path], config(path), directory)[0] == agreement
    assert (directory / AGREEMENT_NAME).stat().st_mtime_ns == before
    with pytest.raises(InputError, match="with different settings or input"):
        measure_agreement([path], config(path, threshold=2), directory)
    again = measure_agreement([path], config(path), tmp_path / "again")[0]
    assert again == agreement  # the seed fixes the intervals
    other = measure_agreement([path], config(path, seed=1), tmp_path / "other")[0]
    assert without_config(other) != without_config(agreement)


@pytest.mark.slow
@pytest.mark.parametrize("file", ["distribution.svg", AGREEMENT_NAME, REPORT_NAME, "manifest.json"])
def test_killed_run_is_unfinished_and_can_be_repeated(file, measured, tmp_path):
    agreement, directory = measured
    path = str(directory.parent / "rated.jsonl")
    with kill_at("before", file), pytest.raises(Killed):
        measure_agreement([path], config(path), tmp_path / "out")
    with pytest.raises(InputError, match="has not finished"):
        read_manifest(str(tmp_path / "out"))
    assert measure_agreement([path], config(path), tmp_path / "out")[0] == agreement
    for name in (AGREEMENT_NAME, REPORT_NAME):
        assert (tmp_path / "out" / name).read_bytes() == (directory / name).read_bytes()


def test_page_escapes_names_and_explains_undefined_figures(tmp_path):
    rows = [{"id": str(i), "<b>human</b>": i % 5, "constant": 3} for i in range(10)]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = AgreementConfig(rating_columns=["<b>human</b>", "constant"], resamples=100)
    ratings, _ = read_ratings([str(path)], options)
    agreement = compare_ratings(ratings, options)
    page = agreement_report(agreement, agreement_plots(agreement, ratings))
    assert "&lt;b&gt;human&lt;/b&gt;" in page
    assert "<b>human" not in page
    assert "Spearman: one of the raters gave every document the same score." in page


def test_raters_without_a_common_document_have_no_figures(tmp_path):
    rows = [{"id": str(i), "a": i % 5, "b": i % 4 if i < 5 else None, "c": None if i < 5 else 1} for i in range(10)]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = AgreementConfig(rating_columns=["a", "b", "c"], resamples=100)
    agreement, _ = measure_agreement([str(path)], options, tmp_path / "out")
    pair = agreement.overall.pairs[2]
    assert (pair.reference, pair.rater, pair.documents) == ("b", "c", 0)
    assert {figure.reason for figure in pair.figures.values()} == {"too few documents (0); at least 3 are required"}


def test_command_prints_a_table_and_the_output_directory(tmp_path):
    path = rated_file(tmp_path / "rated.jsonl")
    call = ["agreement", path, "--rating-columns", "good, english only", "--gold", path, "--by", "language"]
    done = CliRunner().invoke(app, [*call, "--resamples", "100", "-o", str(tmp_path / "out")], env={"COLUMNS": "120"})
    assert done.exit_code == 0, done.output
    lines = [" ".join(line.split()) for line in done.output.splitlines()]
    spearman = json.loads((tmp_path / "out" / AGREEMENT_NAME).read_text())["overall"]["pairs"][0]["figures"]["spearman"]
    shown = f"overall good 60 {spearman['value']:.3f} [{spearman['low']:.3f}, {spearman['high']:.3f}]"
    assert any(line.startswith(shown) for line in lines)
    assert any(line.startswith("language=de english only 20") for line in lines)
    assert f"in {tmp_path / 'out'}" in done.output
