import json

import pytest

from ml_filter.agreement.aggregate import aggregate_annotations
from ml_filter.agreement.config import AggregateConfig
from ml_filter.documents.lineage import annotated_documents, annotation_runs, annotation_summary, only_criterion
from ml_filter.documents.manifest import Manifest, Parent
from ml_filter.documents.preview import manifest_preview
from ml_filter.errors import InputError
from tests.written import prompt, write_annotations


@pytest.fixture
def scores(tmp_path) -> Manifest:
    """Scores of two annotators on the documents of one file."""
    (tmp_path / "pages.jsonl").write_text(json.dumps({"id": "x", "text": "a page"}))
    runs = [
        write_annotations(tmp_path / name, [("x", score)], annotator=name, source=tmp_path / "pages.jsonl")
        for name, score in [("llama", 2.0), ("qwen", 3.0)]
    ]
    return aggregate_annotations([str(run) for run in runs], AggregateConfig(), tmp_path / "scores")


def test_annotation_runs_of_scores_have_annotator_and_prompt_with_its_range(scores):
    runs = annotation_runs(scores)
    assert [run["annotator"] for run in runs] == ["llama", "qwen"]
    assert runs[0]["prompts"] == [{**prompt(), "score_range": [0, 5], "threshold": 3}]
    assert annotation_runs(scores, "danger")[0]["prompts"] == []


def test_a_summary_names_each_annotator_and_prompt_once(scores):
    assert annotation_summary(annotation_runs(scores)) == {
        "annotator": "llama, qwen",
        "prompt": "quality_en",
        "prompt_digest": "digest of quality_en",
    }


def test_ancestors_that_changed_since_are_not_lineage(scores, tmp_path):
    manifest = json.loads((tmp_path / "llama/manifest.json").read_text())
    (tmp_path / "llama/manifest.json").write_text(json.dumps({**manifest, "counts": {"read": 5}}))
    assert [run["annotator"] for run in annotation_runs(scores)] == ["qwen"]


def test_sources_without_a_manifest_are_skipped(scores):
    paths = ["installed:", "hf://datasets/org/name", "nowhere", "memory://nowhere"]
    scores.parents = [Parent(path=path, digest="d") for path in paths]
    assert annotation_runs(scores) == []


def test_the_documents_of_scores_are_those_that_were_annotated(scores, tmp_path):
    assert annotated_documents(scores).paths == [str(tmp_path / "pages.jsonl")]
    scores.parents = []
    with pytest.raises(InputError, match="holds scores without text; name their documents with --documents"):
        annotated_documents(scores)


def test_the_only_criterion_needs_no_name(scores):
    assert only_criterion(scores, None).name == only_criterion(scores, "quality").name == "quality"
    with pytest.raises(InputError, match="has no scores of 'danger'; it has quality"):
        only_criterion(scores, "danger")
    scores.config = {}
    with pytest.raises(InputError, match="without criteria"):
        only_criterion(scores, None)


def test_a_preview_shows_counts_and_the_first_rows(scores):
    page = manifest_preview(scores)
    assert "quality" in page
    assert "2.5" in page
    scores.root = "/nowhere"
    assert "2.5" not in manifest_preview(scores)
