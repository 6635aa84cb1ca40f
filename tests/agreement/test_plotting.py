"""Plots of scores: of annotators, files and corpora, alone and side by side."""

import json
from pathlib import Path

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from ml_filter.agreement.config import AgreementConfig
from ml_filter.agreement.plotting import corpus_scores, plot_scores
from ml_filter.cli.app import app
from ml_filter.documents.manifest import Manifest
from ml_filter.documents.output_directory import OutputDirectory
from ml_filter.errors import InputError
from tests.written import write_annotations


def corpus(path: Path, **columns: list) -> Manifest:
    """A scored corpus of one shard."""
    with OutputDirectory(path, "scored", {}, []) as out:
        with out.new_shard("a") as writer, out.new_rejects("a") as rejects:
            writer.write(pa.table(columns))
        return out.finish([("a", out.commit("a", writer, rejects, {}))])


def plots_in(directory: Path) -> set[str]:
    return {path.stem for path in directory.glob("*.svg")}


def test_annotators_of_the_same_documents_are_shown_with_their_differences(tmp_path):
    a = write_annotations(tmp_path / "a", [("x", 4.0), ("y", 1.0), ("z", None)], "llama")
    b = write_annotations(tmp_path / "b", [("x", 3.0), ("y", 1.0), ("z", 2.0)], "qwen")
    done = CliRunner().invoke(app, ["plot", str(a), str(b), "--output", str(tmp_path / "plots")])
    assert done.exit_code == 0, done.output
    assert plots_in(tmp_path / "plots") == {"distribution", "differences"}
    differences = (tmp_path / "plots/differences.svg").read_text()
    assert "qwen − llama" in differences  # noqa: RUF001
    assert "mean -0.50" in differences
    page = (tmp_path / "plots/plots.html").read_text()
    assert page.count("<svg") == 2
    assert '<td>llama</td><td class="n">2</td><td class="n">1</td><td class="n">2.500</td>' in page
    assert "plots/plots.html" in done.output.replace("\n", "")


def test_one_rater_or_raters_of_other_documents_have_a_distribution_alone(tmp_path):
    a = write_annotations(tmp_path / "a", [("x", 4.0)], "llama")
    b = write_annotations(tmp_path / "b", [("y", 3.0)], "qwen")
    plot_scores([str(a)], AgreementConfig(), tmp_path / "one")
    plot_scores([str(a), str(b)], AgreementConfig(), tmp_path / "two")
    assert plots_in(tmp_path / "one") == plots_in(tmp_path / "two") == {"distribution"}


def test_a_scored_corpus_is_counted_in_bins_and_what_failed_beside_them(tmp_path):
    status = ["scored"] * 4 + ["failed"]
    made = corpus(tmp_path / "c", id=list("abcde"), score=[0.9, 1.0, 1.1, 2.3, None], score_status=status)
    [found] = corpus_scores(made, None)
    assert dict(zip(found.edges, found.counts, strict=False)) == {
        0.75: 1,
        1.0: 2,
        1.25: 0,
        1.5: 0,
        1.75: 0,
        2.0: 0,
        2.25: 1,
    }
    assert (found.documents, found.failed, found.edges[-1]) == (5, 1, 2.5)
    manifest = plot_scores([made.root], AgreementConfig(), tmp_path / "plots")
    assert (manifest.counts["scored"], manifest.counts["failed"]) == (4, 1)
    assert plots_in(tmp_path / "plots") == {"corpus-1"}
    again = plot_scores([made.root], AgreementConfig(), tmp_path / "plots")
    assert again.digest == manifest.digest


def test_a_corpus_of_several_criteria_has_a_plot_of_each_or_of_the_chosen_one(tmp_path):
    made = corpus(tmp_path / "c", id=["a"], score_adult=[1.0], score_quality=[4.0], score_status=["scored"])
    assert [one.column for one in corpus_scores(made, None)] == ["score_adult", "score_quality"]
    assert [one.column for one in corpus_scores(made, "quality")] == ["score_quality"]
    with pytest.raises(InputError, match="has no scores of 'style'; it has score_adult, score_quality"):
        plot_scores([made.root], AgreementConfig(criterion="style"), tmp_path / "plots")


def test_corpora_and_files_of_ratings_stand_on_one_page(tmp_path):
    made = corpus(tmp_path / "c", id=["a"], score=[1.0], score_status=["scored"])
    rated = tmp_path / "rated.jsonl"
    rated.write_text("".join(json.dumps({"id": f"d{n}", "anna": n % 5, "ben": n % 4}) + "\n" for n in range(9)))
    config = AgreementConfig(rating_columns=["anna", "ben"])
    manifest = plot_scores([made.root, str(rated)], config, tmp_path / "plots")
    assert plots_in(tmp_path / "plots") == {"distribution", "differences", "corpus-1"}
    assert (manifest.counts["raters"], manifest.counts["corpora"]) == (2, 1)
