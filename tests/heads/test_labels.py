"""Labels from aggregated scores: which criterion, which documents, and what made them."""

import json

import numpy as np
import pytest

from ml_filter.agreement.aggregate import aggregate_annotations
from ml_filter.agreement.config import AggregateConfig
from ml_filter.criterion import Criterion
from ml_filter.documents.config import SourceConfig
from ml_filter.errors import InputError
from ml_filter.heads.config import TrainConfig
from ml_filter.heads.labels import LabelledDocuments
from tests.written import DANGER, prompt, write_annotations


def pages(path, *names):
    path.write_text("".join(json.dumps({"id": name, "text": f"page {name}"}) + "\n" for name in names))
    return path


def aggregated(tmp_path, *annotations):
    return SourceConfig(paths=[aggregate_annotations(annotations, AggregateConfig(), tmp_path / "scores").root])


def read(source, label_column="score", **settings):
    return LabelledDocuments(source, TrainConfig(label_column=label_column, **settings))


def labels(data):
    """The labels of the first criterion by document."""
    return {name: label for chunk in data for name, (label, *_) in zip(chunk.ids, chunk.labels, strict=True)}


@pytest.fixture
def two_criteria(tmp_path):
    source = pages(tmp_path / "pages.jsonl", "x", "y", "z")
    votes = [("x", 1.0), ("y", None), ("x", 0.5, None, "danger"), ("y", 0.0, None, "danger")]
    prompts = [prompt(), prompt("danger")]
    return aggregated(tmp_path, write_annotations(tmp_path / "a", votes, "llama", prompts, source))


def test_one_criterion_is_chosen_with_its_lineage(two_criteria):
    data = read(two_criteria, "score", criterion="danger")
    assert labels(data) == {"x": 0.5, "y": 0.0}
    assert data.unlabelled == 1  # z was not annotated
    danger = {**prompt("danger"), "score_range": [0, 1], "threshold": 1}
    assert data.lineage == [{"annotator": "llama", "votes": 1, "prompts": [danger]}]
    assert labels(read(two_criteria, "score", criterion="quality")) == {"x": 1.0}


def test_labels_of_csv_are_numbers_and_an_empty_one_is_none(tmp_path):
    (tmp_path / "a.csv").write_text("id,text,label\nx,one,2\ny,two,\nz,three,1.5\n")
    data = read(SourceConfig(paths=[str(tmp_path / "a.csv")]), "label")
    assert labels(data) == {"x": 2.0, "z": 1.5}
    assert data.unlabelled == 1


def test_several_criteria_are_columns_and_a_missing_label_is_nan(two_criteria):
    data = read(two_criteria, "score")
    assert data.names == ["danger", "quality"]
    [chunk] = data
    assert chunk.ids == ["x", "y"]
    assert chunk.labels.tolist() == [[0.5, 1.0], [0.0, pytest.approx(float("nan"), nan_ok=True)]]
    assert [prompts["criterion"] for run in data.lineage for prompts in run["prompts"]] == ["danger", "quality"]


def test_a_criterion_that_is_not_there_is_named_with_those_that_are(two_criteria):
    with pytest.raises(InputError, match="has no scores of 'style'; it has danger, quality"):
        read(two_criteria, "score", criterion="style")


def test_several_label_columns_are_several_criteria(tmp_path):
    path = tmp_path / "pages.jsonl"
    path.write_text('{"text": "a", "edu": 1, "adult": 0}\n{"text": "b", "edu": null, "adult": 1}\n{"text": "c"}\n')
    data = read(SourceConfig(paths=[str(path)]), ["edu", "adult"])
    [chunk] = data
    assert chunk.texts == ["a", "b"]
    assert chunk.labels[0].tolist() == [1, 0]
    assert np.isnan(chunk.labels[1]).tolist() == [True, False]
    assert data.unlabelled == 1


def test_trusted_agreement_gives_less_weight_to_votes_that_disagree(tmp_path):
    source = pages(tmp_path / "pages.jsonl", "x", "y")
    llama = write_annotations(tmp_path / "a", [("x", 1.0), ("y", 1.0)], "llama", source=source)
    qwen = write_annotations(tmp_path / "b", [("x", 1.0), ("y", 5.0)], "qwen", source=source)
    scores = aggregated(tmp_path, llama, qwen)
    [chunk] = read(scores, "score", trust_agreement=True)
    agreed, disputed = chunk.weights[:, 0]
    pooled = 2 * 2**2 / 2  # the votes' standard deviations are 0 and 2
    assert agreed == pytest.approx(1 / (1 + pooled / 4))
    assert disputed == pytest.approx(1 / (1 + (pooled + 2 * 2**2) / 4))
    [chunk] = read(scores, "score")
    assert chunk.weights.tolist() == [[1], [1]]


def test_chunks_have_hosts_sources_and_languages(tmp_path):
    path = tmp_path / "pages.jsonl"
    first = {"text": "a", "score": 1, "url": "https://example.org/a?b", "language": "de"}
    second = {"text": "b", "score": 1, "url": "http://["}
    path.write_text(f"{json.dumps(first)}\n{json.dumps(second)}\n")
    [chunk] = read(SourceConfig(paths=[str(path)]), "score")
    assert chunk.strata == {"language": ["de", None], "host": ["example.org", None]}


def test_criteria_can_only_be_chosen_from_aggregated_scores(tmp_path):
    source = SourceConfig(paths=[str(pages(tmp_path / "pages.jsonl", "x"))])
    with pytest.raises(InputError, match=r"has no aggregated scores to choose criteria from \(danger\)"):
        read(source, "score", criterion="danger")


def test_documents_of_all_annotators_are_read_once_each(tmp_path):
    first, more = pages(tmp_path / "first.jsonl", "x", "y"), pages(tmp_path / "more.jsonl", "y", "z", "z")
    llama = write_annotations(tmp_path / "a", [("x", 1.0), ("y", 2.0)], "llama", source=first)
    qwen = write_annotations(tmp_path / "b", [("y", 4.0), ("z", 5.0)], "qwen", source=more)
    data = read(aggregated(tmp_path, llama, qwen), "score")
    assert [document_id for chunk in data for document_id in chunk.ids] == ["x", "y", "z"]
    assert labels(data) == {"x": 1.0, "y": 3.0, "z": 5.0}
    assert data.unlabelled == 0
    assert [run["annotator"] for run in data.lineage] == ["llama", "qwen"]


def test_a_single_vote_weighs_less_than_three_that_nearly_agree(tmp_path):
    source = pages(tmp_path / "pages.jsonl", "one", "near", "far")
    votes = {"a": [("one", 3.0), ("near", 3.0), ("far", 0.0)], "b": [("near", 3.0), ("far", 2.0)]}
    votes["c"] = [("near", 4.0), ("far", 5.0)]
    annotations = [write_annotations(tmp_path / name, by_one, name, source=source) for name, by_one in votes.items()]
    data = read(aggregated(tmp_path, *annotations), "score", trust_agreement=True)
    weights = {name: weight for chunk in data for name, (weight, *_) in zip(chunk.ids, chunk.weights, strict=True)}
    assert weights["near"] > weights["far"] > 0
    assert weights["near"] > weights["one"]
    pooled = (2 / 3 + 38 / 3) / 4  # squared deviations over degrees of freedom
    assert weights["one"] == pytest.approx(1 / (1 + pooled))
    assert weights["near"] == pytest.approx(1 / (1 + (pooled + 2 / 3) / 9))


def test_trusted_agreement_requires_aggregated_scores_with_several_votes(tmp_path):
    source = pages(tmp_path / "pages.jsonl", "x", "y")
    scores = aggregated(tmp_path, write_annotations(tmp_path / "a", [("x", 1.0), ("y", 2.0)], source=source))
    with pytest.raises(InputError, match="requires several votes for a document, but none has them for quality"):
        read(scores, "score", trust_agreement=True)
    with pytest.raises(InputError, match="trust_agreement requires aggregated scores"):
        read(SourceConfig(paths=[str(source)]), "score", trust_agreement=True)


def test_aggregated_scores_at_a_url_are_known_as_such(tmp_path):
    source = pages(tmp_path / "pages.jsonl", "x", "y")
    made = write_annotations(tmp_path / "a", [("x", 1.0), ("y", 2.0)], "llama", source=source)
    scores = aggregate_annotations([made], AggregateConfig(), "memory://labels/scores")
    data = read(SourceConfig(paths=[scores.root]), "label", criterion="quality")
    assert labels(data) == {"x": 1.0, "y": 2.0}
    assert [run["annotator"] for run in data.lineage] == ["llama"]


def test_the_labels_manifest_defines_the_criteria(two_criteria):
    assert read(two_criteria, "score").criteria == [
        DANGER,
        Criterion(name="quality", low=0, high=5, threshold=3),
    ]
    [stricter] = read(two_criteria, "score", criterion="quality", threshold=4).criteria
    assert stricter.threshold == 4
    with pytest.raises(InputError, match="has scores of danger from 0 to 1, not from 0 to 5; leave score_range out"):
        read(two_criteria, "score", score_range=(0, 5))


def test_labels_of_other_tools_have_the_range_that_is_given(tmp_path):
    source = SourceConfig(paths=[str(pages(tmp_path / "pages.jsonl", "x"))])
    assert read(source, "edu").criteria == [Criterion(name="edu", low=0, high=5, threshold=3)]
    given = read(source, ["edu", "adult"], score_range=(0, 1))
    assert given.criteria == [Criterion(name=name, low=0, high=1, threshold=0.5) for name in ("edu", "adult")]


@pytest.fixture
def score_lists(tmp_path):
    rows = [{"id": "x", "text": "one", "scores": [3, 1]}, {"id": "y", "text": "two", "scores": [2]}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return SourceConfig(paths=[str(tmp_path / "a.jsonl")])


def test_a_column_of_lists_is_one_criterion_for_each_item(score_lists):
    data = read(score_lists, "scores")
    assert data.names == ["scores[0]", "scores[1]"]
    [chunk] = data
    assert chunk.labels.tolist() == [[3, 1], [2, pytest.approx(float("nan"), nan_ok=True)]]
    assert read(score_lists, "scores", criterion=["edu", "adult"]).names == ["edu", "adult"]
    with pytest.raises(InputError, match=r"name all items of a column of lists \(scores\[0\], scores\[1\]\)"):
        read(score_lists, "scores", criterion=["edu"])


def test_one_item_of_a_column_of_lists_can_be_the_label(score_lists):
    assert labels(read(score_lists, "scores[0]")) == {"x": 3.0, "y": 2.0}
    assert labels(read(score_lists, "scores[1]")) == {"x": 1.0}
