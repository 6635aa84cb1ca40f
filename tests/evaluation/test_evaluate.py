"""Evaluating real heads on real documents."""

import json
import math
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.stats import spearmanr

from ml_filter.cli import main
from ml_filter.criterion import Criterion
from ml_filter.documents.config import SourceConfig
from ml_filter.documents.manifest import read_manifest
from ml_filter.errors import InputError
from ml_filter.evaluation.evaluate import WORST, _column, _keep_worst, _predictions, _with_label, evaluate_head
from ml_filter.evaluation.result import HeadEvaluation
from ml_filter.heads.config import TrainConfig
from ml_filter.heads.info import read_info
from ml_filter.heads.kinds import load_head
from ml_filter.heads.kinds.hashing import HashingHead, HashingSettings
from ml_filter.heads.kinds.stack import StackHead
from ml_filter.heads.kinds.static import StaticHead, StaticSettings, TokenVectors
from ml_filter.heads.labels import Labelled
from ml_filter.heads.train import train_head
from ml_filter.scoring.config import ScoreConfig
from ml_filter.statistics.quality import HeadScores, length_buckets

pytestmark = pytest.mark.model

CRITERION = Criterion(name="quality", low=0, high=5, threshold=3)


def label_of(text):
    """How much of a text is prose rather than signs, 0 to 5."""
    return round(5 * sum(c.isalpha() or c.isspace() for c in text) / len(text), 3)


@pytest.fixture(scope="module")
def gold(documents, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("gold") / "gold.jsonl"
    rows = [{**row, "label": label_of(row["text"]), "shifted": label_of(row["text"]) + 3} for row in documents]
    rows[0]["text"] = "<script>alert(1)</script>" + rows[0]["text"]
    rows[0]["label"] = 0.0
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def heads(gold, tmp_path_factory) -> tuple[str, str]:
    """A head, and one that reads the first tokens only."""
    folder = tmp_path_factory.mktemp("heads")
    source = SourceConfig(paths=[str(gold)])
    made = [
        train_head(source, TrainConfig(label_column="label", max_tokens=n), folder / f"head-{n}").origin
        for n in (64, 8)
    ]
    return made[0], made[1]


@pytest.fixture(scope="module")
def evaluated(heads, gold, tmp_path_factory) -> tuple[HeadEvaluation, Path]:
    output = tmp_path_factory.mktemp("runs") / "evaluation"
    evaluation, _ = evaluate_head(heads[0], SourceConfig(paths=[str(gold)]), "label", output, compare=heads[1])
    return evaluation, output


def test_figures_are_those_of_the_written_predictions(evaluated, heads):
    evaluation, output = evaluated
    rows = pq.read_table(output / "shards").to_pydict()
    assert len(rows["id"]) == evaluation.documents == 60
    assert evaluation.spearman == pytest.approx(spearmanr(rows["score"], rows["label"]).statistic)
    assert evaluation.comparison.theirs["spearman"].value == pytest.approx(
        spearmanr(rows["compared_score"], rows["label"]).statistic
    )
    calibration = read_info(heads[0]).criteria[0].calibration
    assert (
        rows["int_score"] == HeadScores.from_scores(np.array(rows["score"]), CRITERION, calibration).int_scores.tolist()
    )


def test_finished_evaluation_is_reused(evaluated, heads, gold):
    evaluation, output = evaluated
    before = (output / "evaluation.json").stat().st_mtime_ns
    again, manifest = evaluate_head(heads[0], SourceConfig(paths=[str(gold)]), "label", output, compare=heads[1])
    assert again == evaluation
    assert [manifest.counts[name] for name in ("documents", "unscored", "unlabelled")] == [60, 0, 0]
    assert (output / "evaluation.json").stat().st_mtime_ns == before
    with pytest.raises(InputError, match="different settings or input"):
        evaluate_head(heads[1], SourceConfig(paths=[str(gold)]), "label", output)


def test_page_shows_figures_and_plots_and_escapes_texts(evaluated):
    evaluation, output = evaluated
    page = (output / "evaluation.html").read_text()
    assert page.count("<svg") >= 5
    assert f"{evaluation.intervals['mae'].value:.3f}" in page
    assert f"{evaluation.comparison.differences['spearman'].value:.3f}" in page
    assert "&lt;script&gt;alert(1)" in page
    assert "<script" not in page


def test_worst_disagreements_are_the_largest_in_order(evaluated):
    evaluation, output = evaluated
    rows = pq.read_table(output / "shards").to_pylist()
    distances = sorted((abs(row["score"] - row["label"]) for row in rows), reverse=True)
    assert [abs(worst.score - worst.label) for worst in evaluation.worst] == pytest.approx(distances[:WORST])
    assert all(len(worst.excerpt) <= 402 for worst in evaluation.worst)


def test_lengths_in_tokens_are_strata_of_all_documents(evaluated, heads, gold):
    evaluation, output = evaluated
    tokenizer = load_head(heads[0], ScoreConfig()).tokenizer
    texts = [json.loads(line)["text"] for line in gold.read_text().splitlines()]
    tokens = [len(tokenizer.tokenize(text)) for text in texts]
    assert pq.read_table(output / "shards")["tokens"].to_pylist() == tokens
    lengths = {s.value: s.documents for s in evaluation.strata if s.column == "length in tokens"}
    assert lengths == Counter(length_buckets(np.array(tokens)))
    assert "in tokens of the head's tokenizer" in (output / "evaluation.html").read_text()


def test_head_without_a_tokenizer_has_lengths_in_words(gold, tmp_path):
    source = SourceConfig(paths=[str(gold)])
    head = train_head(source, TrainConfig(label_column="label", kind="hashing"), tmp_path / "head")
    evaluation, _ = evaluate_head(head.origin, source, "label", tmp_path / "evaluation")
    assert sum(s.documents for s in evaluation.strata if s.column == "length in words") == 60
    assert evaluation.length_unit == "words"
    assert "in words, as the head has no tokenizer" in (tmp_path / "evaluation" / "evaluation.html").read_text()


def test_stack_and_static_embeddings_count_tokens(heads):
    encoder = load_head(heads[0], ScoreConfig())
    nothing = np.zeros((1, 1), np.float32)
    plain = encoder.tokenizer.backend_tokenizer
    static = StaticHead(TokenVectors(StaticSettings(), plain, nothing), nothing, nothing[0], encoder.info)
    words = HashingHead(HashingSettings(), {}, encoder.info)
    stack = StackHead([words, encoder], {"weights": [[1, 1]], "bias": [0]}, encoder.info)
    for head, unit, count in ((static, "tokens", 5), (words, "words", 3), (stack, "tokens", 5)):
        assert (head.unit, head.lengths(["Water boils twice.", ""])) == (unit, [count, 0])


def test_labels_outside_the_range_are_an_error(heads, gold, tmp_path):
    with pytest.raises(InputError, match="outside the head's score range 0 to 5"):
        evaluate_head(heads[0], SourceConfig(paths=[str(gold)]), "shifted", tmp_path / "evaluation")


def test_gold_without_labels_is_an_error(heads, tmp_path):
    (tmp_path / "empty.jsonl").write_text(json.dumps({"text": "Water boils.", "label": None}) + "\n")
    source = SourceConfig(paths=[str(tmp_path / "empty.jsonl")])
    with pytest.raises(InputError, match=r"no document of .* has a label in 'label'"):
        evaluate_head(heads[0], source, "label", tmp_path / "evaluation")


def test_single_labelled_document_has_only_the_figures_defined_for_one(heads, gold, tmp_path):
    (tmp_path / "one.jsonl").write_text(gold.read_text().splitlines()[1] + "\n")
    source = SourceConfig(paths=[str(tmp_path / "one.jsonl")])
    evaluation, _ = evaluate_head(heads[0], source, "label", tmp_path / "evaluation", compare=heads[1])
    assert (evaluation.documents, evaluation.spearman) == (1, None)
    assert evaluation.intervals["mae"].reason == "too few documents (1); at least 3 are required"
    assert "at least 3 are required" in (tmp_path / "evaluation" / "evaluation.html").read_text()


def test_unknown_criterion_is_an_error(heads, gold, tmp_path):
    with pytest.raises(InputError, match=r"choose one of them with --criterion"):
        evaluate_head(heads[0], SourceConfig(paths=[str(gold)]), "label", tmp_path / "evaluation", criterion="toxicity")


def test_command_prints_the_figures_of_both_heads(evaluated, heads, gold, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    command = ["evaluate", heads[0], str(gold), "--label-column", "label", "--compare", heads[1]]
    assert main([*command, "--output", str(evaluated[1])]) == 0
    printed = capsys.readouterr().out
    assert "compared with" in printed
    assert f"{evaluated[0].comparison.differences['mae'].value:.3f}" in printed


# --- Scores of earlier evaluations -----------------------------------------------------------------------------------


@pytest.fixture
def without_tokenizers(heads, tmp_path) -> tuple[str, str]:
    """The same heads, but nothing can be scored with them any more."""
    for name, head in zip("ab", heads, strict=True):
        shutil.copytree(head, tmp_path / name, ignore=lambda *_: ["tokenizer.json", "tokenizer_config.json"])
    return str(tmp_path / "a"), str(tmp_path / "b")


def test_scores_of_an_earlier_evaluation_are_reused(evaluated, heads, without_tokenizers, gold, tmp_path):
    source = SourceConfig(paths=[str(gold)])
    ours, theirs = without_tokenizers
    alone = [evaluate_head(head, source, "label", tmp_path / Path(head).name)[1] for head in heads]
    again, manifest = evaluate_head(ours, source, "label", tmp_path / "again", compare=theirs, earlier=alone)
    named = {"head": evaluated[0].head, "compared_with": evaluated[0].compared_with}
    assert again.model_copy(update=named) == evaluated[0]
    assert manifest.shards[0].digest == read_manifest(str(evaluated[1])).shards[0].digest
    swapped, _ = evaluate_head(theirs, source, "label", tmp_path / "swapped", compare=ours, earlier=[manifest])
    assert swapped.comparison.ours == again.comparison.theirs  # out of one evaluation of both


def test_scores_of_other_documents_or_of_a_changed_file_are_not_reused(heads, without_tokenizers, gold, tmp_path):
    source, ours = SourceConfig(paths=[str(gold)]), without_tokenizers[0]
    (tmp_path / "fewer.jsonl").write_text("".join(gold.read_text().splitlines(keepends=True)[:40]))
    fewer = SourceConfig(paths=[str(tmp_path / "fewer.jsonl")])
    _, manifest = evaluate_head(heads[0], source, "label", tmp_path / "evaluation")
    with pytest.raises(InputError, match=r"tokenizer\.json is missing"):
        evaluate_head(ours, fewer, "label", tmp_path / "other", earlier=[manifest])
    with pytest.raises(InputError, match="outside the head's score range"):
        evaluate_head(heads[0], source, "shifted", tmp_path / "shifted", earlier=[manifest])
    with Path(manifest.shard_paths()[0]).open("ab") as file:
        file.write(b"changed")
    with pytest.raises(InputError, match=r"tokenizer\.json is missing"):
        evaluate_head(ours, source, "label", tmp_path / "changed", earlier=[manifest])


# --- Documents ------------------------------------------------------------------------------------------------------


def labelled(ids):
    labels = np.zeros((len(ids), 1))
    return Labelled(ids, [name * 500 for name in ids], labels, labels + 1, {})


def test_documents_without_a_column_are_in_no_stratum_of_it(heads, gold, tmp_path):
    rows = [json.loads(line) for line in gold.read_text().splitlines()]
    english, with_url = (
        [{"text": row["text"], "label": row["label"], **extra} for row in part]
        for part, extra in ((rows[:20], {"language": "en"}), (rows[20:], {"url": "https://x.org/a"}))
    )
    for name, part in (("a", english), ("b", with_url)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    source = SourceConfig(paths=[str(tmp_path / "?.jsonl")])
    evaluation, _ = evaluate_head(heads[0], source, "label", tmp_path / "evaluation")
    assert [(s.value, s.documents) for s in evaluation.strata if s.column == "language"] == [("en", 20)]
    assert (evaluation.discrimination.column, evaluation.discrimination.documents) == ("host", 40)
    assert sum(s.documents for s in evaluation.strata if s.column == "length in tokens") == 60


def test_only_the_texts_of_the_worst_are_kept():
    worst = []
    for first in range(0, 500, 50):
        scores = np.arange(first, first + 50, dtype=np.float32) / 100
        worst = _keep_worst(worst, labelled([str(first + k) for k in range(50)]), scores)
    assert [document.id for document in worst] == [str(k) for k in range(499, 499 - WORST, -1)]
    assert all(len(document.excerpt) == 402 for document in worst)


def test_document_without_a_score_is_null_and_not_a_disagreement():
    scores = np.array([math.nan, 2.6], np.float32)
    rows = _predictions(labelled(["a", "b"]), [scores], np.array([0, 3]), "tokens", [1, 2]).to_pylist()
    assert [row["score"] for row in rows] == [None, pytest.approx(2.6)]
    assert [row["int_score"] for row in rows] == [None, 3]
    assert [document.id for document in _keep_worst([], labelled(["a", "b"]), scores)] == ["b"]


def test_documents_without_a_label_of_the_criterion_are_ignored():
    labels = np.array([[1.0, math.nan], [math.nan, 4.0], [2.0, 3.0]])
    chunk = Labelled(["a", "b", "c"], ["A", "B", "C"], labels, np.ones((3, 2)), {"host": ["x", None, "z"]})
    taken = _with_label(chunk, 1)
    assert (taken.ids, taken.texts, taken.labels.tolist()) == (["b", "c"], ["B", "C"], [[4.0], [3.0]])
    assert taken.strata == {"host": [None, "z"]}


def test_criterion_must_be_chosen_if_there_are_several():
    assert _column(["edu"], None, "the head") == 0
    assert _column(["edu", "toxicity"], "toxicity", "the head") == 1
    with pytest.raises(InputError, match="the head has the criteria edu, toxicity; choose one"):
        _column(["edu", "toxicity"], None, "the head")


def test_only_criterion_of_a_compared_head_is_used_whatever_its_name(gold, tmp_path):
    rows = [json.loads(line) for line in gold.read_text().splitlines()]
    path = tmp_path / "two.jsonl"
    path.write_text("".join(json.dumps({**row, "other": 5 - row["label"]}) + "\n" for row in rows))
    source = SourceConfig(paths=[str(path)])
    both, one = (
        train_head(source, TrainConfig(kind="hashing", label_column=of), tmp_path / str(len(of))).origin
        for of in (["other", "label"], "label")
    )
    evaluation, _ = evaluate_head(both, source, "other", tmp_path / "compared", compare=one, criterion="other")
    assert evaluation.criterion == "other"
    assert evaluation.comparison is not None
    with pytest.raises(InputError, match=r"has the criteria other, label; choose one of them with --criterion"):
        evaluate_head(one, source, "label", tmp_path / "unclear", compare=both)
