import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ml_filter.documents.config import SourceConfig
from ml_filter.errors import ConfigError, InputError
from ml_filter.evaluation.evaluate import evaluate_head
from ml_filter.heads.config import TrainConfig
from ml_filter.heads.label_table import choose_test_documents
from ml_filter.heads.load import load_model
from ml_filter.heads.model import HeadModel
from ml_filter.heads.train import read_head, train_head

CONFIG = TrainConfig(label_column="label", max_tokens=64)


@pytest.fixture
def head(labelled, tmp_path):
    return train_head(SourceConfig(paths=[str(labelled)]), CONFIG, tmp_path / "head")


def test_torch_multiplies_two_matrices():
    assert (torch.ones(2, 3) @ torch.ones(3, 2)).tolist() == [[3.0, 3.0], [3.0, 3.0]]


def test_a_trained_head_is_loaded_by_one_from_pretrained_and_scores(head):
    model = HeadModel.from_pretrained(head.directory)
    _, tokenizer = load_model(head.directory)
    batch = tokenizer(["Water boils at 100 degrees."], return_tensors="pt")
    score = model(**batch)
    one_segment = torch.zeros_like(batch["input_ids"])
    assert model(**{**batch, "token_type_ids": one_segment}).equal(score)
    assert score.shape == (1, 1)
    assert -1 <= score.item() <= 6  # clamped by the engine


def test_it_is_safetensors_with_config_and_tokenizer_and_nothing_pickled(head):
    names = {path.name for path in Path(head.directory).iterdir() if not path.name.startswith(".")}
    ours = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "training.json"}
    assert names == {*ours, "trained_on.safetensors"}


def test_it_holds_no_path_of_the_machine_that_trained_it(head):
    assert "site-packages" not in (Path(head.directory) / "config.json").read_text()


def test_training_twice_gives_the_same_weights(head, labelled, tmp_path):
    again = train_head(SourceConfig(paths=[str(labelled)]), CONFIG, tmp_path / "again")
    assert again.digest == head.digest


def test_exact_duplicates_never_stand_on_both_sides_of_the_split(documents, tmp_path):
    path = tmp_path / "twice.jsonl"
    rows = [
        {"id": f"{row['id']}-{copy}", "text": row["text"], "label": i % 5}
        for copy in (1, 2)
        for i, row in enumerate(documents)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    training = train_head(SourceConfig(paths=[str(path)]), CONFIG, tmp_path / "head").training
    assert training.train_documents % 2 == 0
    assert training.test_documents % 2 == 0


@pytest.mark.parametrize("engine", ["hashing", "stack"])
def test_near_duplicates_without_url_never_stand_on_both_sides_of_a_split(documents, tmp_path, engine):
    changes = [str, str.upper, str.lower, str.title, lambda text: f" {text}\n", lambda text: text.replace(" ", "  ")]
    texts = [row["text"][:600] for row in documents[:30]]
    rows = [{"text": change(text), "label": i % 6} for i, text in enumerate(texts) for change in changes]
    path = tmp_path / "variants.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = TrainConfig(engine=engine, label_column="label", max_tokens=64)
    training = train_head(SourceConfig(paths=[str(path)]), config, tmp_path / "head").training
    assert training.train_documents % 6 == training.test_documents % 6 == 0
    # The labels mean nothing: a head that is right about them has seen the document.
    assert training.test["label"].accuracy < 0.5
    assert training.cross_validated["label"].accuracy < 0.5


def test_a_finished_head_is_not_trained_again_and_other_settings_are_refused(head, labelled):
    weights = Path(head.directory) / "model.safetensors"
    before = weights.stat().st_mtime_ns
    source = SourceConfig(paths=[str(labelled)])
    assert train_head(source, CONFIG, head.directory) == head
    assert weights.stat().st_mtime_ns == before
    with pytest.raises(InputError, match="other labels or settings"):
        train_head(source, CONFIG.model_copy(update={"seed": 7}), head.directory)


def test_killed_in_mid_training_it_is_not_a_head_and_a_second_call_makes_one(head, labelled, tmp_path):
    command = [sys.executable, "-m", "ml_filter.cli", "train", str(labelled), "--label-column", "label"]
    config = tmp_path / "train.yaml"
    config.write_text("max_tokens: 64\n")
    command += ["--config", str(config), "--output", str(tmp_path / "killed")]
    environment = {**os.environ, "ML_FILTER_EMBEDDING_DIR": str(tmp_path / "embeddings")}
    running = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=environment)
    while running.poll() is None and not list((tmp_path / "embeddings").glob("*/keys")):
        time.sleep(0.01)
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    with pytest.raises(InputError, match="no trained head"):
        read_head(tmp_path / "killed")
    subprocess.run(command, check=True, capture_output=True, env=environment)
    assert train_head(SourceConfig(paths=[str(labelled)]), CONFIG, tmp_path / "killed").digest == head.digest
    assert {path.name for path in (tmp_path / "killed").iterdir()} == {
        path.name for path in Path(head.directory).iterdir()
    }


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([{"text": "a", "label": 1}] * 5, "too few"),
        ([{"text": f"text {i}", "label": 2} for i in range(40)], "nothing to learn"),
        ([{"text": f"text {i}", "label": i} for i in range(40)], "outside the score range"),
        ([{"text": f"text {i}", "other": i} for i in range(40)], "no label column 'label'; it has id, text, other"),
        ([{"text": f"text {i}", "label": "good"} for i in range(40)], "no column of numbers"),
        (
            [{"text": f"text {i}", "label": i % 5, "url": "https://www.one.org/"} for i in range(40)],
            "the 40 labelled documents are of 1 host or .* none is left for the test; give labels of more hosts",
        ),
    ],
)
def test_labels_that_cannot_teach_are_refused_with_the_reason(rows, says, tmp_path):
    path = tmp_path / "labels.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match=says):
        train_head(SourceConfig(paths=[str(path)]), CONFIG, tmp_path / "head")


def test_a_criterion_that_is_labelled_on_two_hosts_only_is_named(documents, tmp_path):
    hosts = [f"{'x' if i % 2 else 'y'}.org" if i < 30 else f"{i}.org" for i in range(len(documents))]
    rows = [
        {**row, "a": i % 6, "b": i % 5 if i < 30 else None, "url": f"https://{host}"}
        for i, (row, host) in enumerate(zip(documents, hosts, strict=True))
    ]
    path = tmp_path / "labels.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    refused = []
    for seed in range(8):  # with some, one of the two hosts is the test's
        config = TrainConfig(engine="hashing", label_column=["a", "b"], seed=seed)
        try:
            train_head(SourceConfig(paths=[str(path)]), config, tmp_path / f"head-{seed}")
        except InputError as error:
            refused.append(str(error))
    assert any("a label of b to train on are all in one fold, as they are of one host" in why for why in refused)


def test_an_unknown_encoder_is_named(labelled, tmp_path):
    with pytest.raises(ConfigError, match=r"'\./no-such-encoder'"):
        train_head(
            SourceConfig(paths=[str(labelled)]),
            TrainConfig(label_column="label", encoder="./no-such-encoder"),
            tmp_path / "head",
        )


def test_evaluation_writes_figures_page_and_each_documents_score(head, labelled, tmp_path):
    source = SourceConfig(paths=[str(labelled)])
    evaluation, manifest = evaluate_head(head.directory, source, "label", tmp_path / "evaluation")
    assert evaluation.documents == manifest.rows == 60
    assert evaluation.spearman is not None
    assert evaluation.spearman > 0.5
    assert "<svg" in (tmp_path / "evaluation" / "evaluation.html").read_text()
    assert json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())["documents"] == 60


@given(st.lists(st.integers(0, 2**64 - 1), min_size=2, max_size=8, unique=True), st.data())
def test_hosts_go_to_the_test_whole_and_as_near_to_the_share_as_they_let(keys, data):
    sizes = [data.draw(st.integers(1, 40)) for _ in keys]
    groups = np.repeat(np.array(keys, np.uint64), sizes)
    chosen = choose_test_documents(groups, 0.2)
    assert all(len(set(chosen[groups == key])) == 1 for key in np.unique(groups))
    assert not chosen.all()
    assert abs(chosen.sum() - 0.2 * len(groups)) <= 0.2 * len(groups)  # never farther than without any
    if max(sizes) == 1 and len(keys) >= 5:
        assert chosen.sum() == round(0.2 * len(groups))
