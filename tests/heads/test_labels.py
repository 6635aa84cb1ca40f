"""Labels from aggregated scores: which criterion, which documents, and what made them."""

import json

import pytest
from written import prompt, write_annotations

from ml_filter.agreement.aggregate import aggregate_annotations
from ml_filter.errors import InputError
from ml_filter.heads.labels import LabelledDocuments
from ml_filter.settings import AggregateConfig, SourceConfig


def pages(path, *names):
    path.write_text("".join(json.dumps({"id": name, "text": f"page {name}"}) + "\n" for name in names))
    return path


def aggregated(tmp_path, *annotations):
    return SourceConfig(paths=[aggregate_annotations(annotations, AggregateConfig(), tmp_path / "scores").root])


def labels(data):
    return {name: label for chunk in data for name, label in zip(chunk.ids, chunk.labels, strict=True)}


@pytest.fixture
def two_criteria(tmp_path):
    source = pages(tmp_path / "pages.jsonl", "x", "y", "z")
    votes = [("x", 1.0), ("y", None), ("x", 0.5, None, "danger"), ("y", 0.0, None, "danger")]
    asked = [prompt(), prompt("danger", (0, 1))]
    return aggregated(tmp_path, write_annotations(tmp_path / "a", votes, "llama", asked, source))


def test_a_criterion_is_picked_and_its_lineage_says_who_was_asked_what(two_criteria):
    data = LabelledDocuments(two_criteria, "score", criterion="danger")
    assert labels(data) == {"x": 0.5, "y": 0.0}
    assert data.unlabelled == 1  # z was not annotated
    assert data.lineage == [{"annotator": "llama", "votes": 1, "prompts": [prompt("danger", (0, 1))]}]
    assert labels(LabelledDocuments(two_criteria, "score", criterion="quality")) == {"x": 1.0}


def test_several_criteria_and_none_chosen_are_named(two_criteria):
    with pytest.raises(InputError, match="holds scores of danger, quality; choose one with --criterion"):
        LabelledDocuments(two_criteria, "score")
    with pytest.raises(InputError, match="holds no scores of 'style'; it has danger, quality"):
        LabelledDocuments(two_criteria, "score", criterion="style")


def test_a_criterion_of_labels_that_have_none_is_refused(tmp_path):
    source = SourceConfig(paths=[str(pages(tmp_path / "pages.jsonl", "x"))])
    with pytest.raises(InputError, match=r"a criterion \(danger\) is chosen, but .* holds no aggregated scores"):
        LabelledDocuments(source, "score", criterion="danger")


def test_the_documents_of_all_annotators_are_found_and_each_is_given_once(tmp_path):
    first, more = pages(tmp_path / "first.jsonl", "x", "y"), pages(tmp_path / "more.jsonl", "y", "z", "z")
    one = write_annotations(tmp_path / "a", [("x", 1.0), ("y", 2.0)], "llama", source=first)
    other = write_annotations(tmp_path / "b", [("y", 4.0), ("z", 5.0)], "qwen", source=more)
    data = LabelledDocuments(aggregated(tmp_path, one, other), "score")
    found = [name for chunk in data for name in chunk.ids]
    assert found == ["x", "y", "z"]
    assert labels(data) == {"x": 1.0, "y": 3.0, "z": 5.0}
    assert data.unlabelled == 0
    assert [made["annotator"] for made in data.lineage] == ["llama", "qwen"]
