"""Training a head: what is saved, how documents are split, and which labels are refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loguru import logger

from ml_filter.documents.config import SourceConfig
from ml_filter.errors import ConfigError, InputError
from ml_filter.evaluation.evaluate import evaluate_head
from ml_filter.heads import train
from ml_filter.heads.config import TrainConfig
from ml_filter.heads.labels import choose_test_documents
from ml_filter.heads.model import HeadModel, load_model
from ml_filter.heads.store import read_head
from ml_filter.heads.train import train_head
from ml_filter.heads.trained import TrainedHead
from tests.kills import Killed

pytestmark = pytest.mark.model


def written(path: Path, rows: list[dict]) -> SourceConfig:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return SourceConfig(paths=[str(path)])


@pytest.fixture(scope="module")
def config(small_encoder) -> TrainConfig:
    return TrainConfig(label_column="label", encoder=small_encoder, max_tokens=64)


@pytest.fixture(scope="module")
def source(documents, tmp_path_factory) -> SourceConfig:
    """Documents labelled by how much of their text is prose rather than signs."""
    rows = [
        {**row, "label": round(5 * sum(c.isalpha() or c.isspace() for c in row["text"]) / len(row["text"]), 3)}
        for row in documents
    ]
    return written(tmp_path_factory.mktemp("labels") / "labelled.jsonl", rows)


@pytest.fixture(scope="module")
def head(source, config, tmp_path_factory) -> TrainedHead:
    return train_head(source, config, tmp_path_factory.mktemp("trained") / "head")


def test_torch_multiplies_two_matrices():
    assert (torch.ones(2, 3) @ torch.ones(3, 2)).tolist() == [[3.0, 3.0], [3.0, 3.0]]


def test_a_trained_head_is_loaded_by_one_from_pretrained_and_scores(head):
    model = HeadModel.from_pretrained(head.origin)
    _, tokenizer = load_model(head.origin)
    batch = tokenizer(["Water boils at 100 degrees."], return_tensors="pt")
    score = model(**batch)
    one_segment = torch.zeros_like(batch["input_ids"])
    assert model(**{**batch, "token_type_ids": one_segment}).equal(score)
    assert score.shape == (1, 1)
    assert -1 <= score.item() <= 6  # clamped by the engine


def test_it_is_safetensors_with_config_and_tokenizer_and_nothing_pickled(head):
    names = {path.name for path in Path(head.origin).iterdir() if not path.name.startswith(".")}
    ours = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "training.json"}
    assert names == {*ours, "trained_on.safetensors"}


def test_it_holds_no_path_of_the_machine_that_trained_it(head):
    assert "site-packages" not in (Path(head.origin) / "config.json").read_text()


def test_training_twice_gives_the_same_weights(head, source, config, tmp_path):
    again = train_head(source, config, tmp_path / "again")
    assert again.digest == head.digest


def test_exact_duplicates_are_on_one_side_of_the_split(documents, config, tmp_path):
    rows = [
        {"id": f"{row['id']}-{copy}", "text": row["text"], "label": i % 5}
        for copy in (1, 2)
        for i, row in enumerate(documents)
    ]
    training = train_head(written(tmp_path / "twice.jsonl", rows), config, tmp_path / "head").training
    assert training.train_documents % 2 == 0
    assert training.test_documents % 2 == 0


@pytest.mark.parametrize("kind", ["hashing", "stack"])
def test_near_duplicates_without_url_are_on_one_side_of_every_split(documents, config, tmp_path, kind):
    changes = [str, str.upper, str.lower, str.title, lambda text: f" {text}\n", lambda text: text.replace(" ", "  ")]
    texts = [row["text"][:600] for row in documents[:30]]
    rows = [{"text": change(text), "label": i % 6} for i, text in enumerate(texts) for change in changes]
    source = written(tmp_path / "variants.jsonl", rows)
    training = train_head(source, config.model_copy(update={"kind": kind}), tmp_path / "head").training
    assert training.train_documents % 6 == training.test_documents % 6 == 0
    # The labels mean nothing: a head that is right about them has seen the document.
    assert training.test["label"].accuracy < 0.5
    assert training.cross_validated["label"].accuracy < 0.5


def test_a_finished_head_is_not_trained_again_and_other_settings_are_refused(head, source, config):
    weights = Path(head.origin) / "model.safetensors"
    before = weights.stat().st_mtime_ns
    assert train_head(source, config, head.origin) == head
    assert weights.stat().st_mtime_ns == before
    with pytest.raises(InputError, match="already has a head with other labels or settings"):
        train_head(source, config.model_copy(update={"seed": 7}), head.origin)


@pytest.mark.parametrize("point", ["read_label_table", "_evaluate", "write_atomically"])
def test_a_killed_training_leaves_no_head_and_the_next_call_makes_the_same(head, source, config, tmp_path, point):
    def kill(*arguments):
        raise Killed(point)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(train, point, kill)
        train_head(source, config, tmp_path / "killed")
    with pytest.raises(InputError, match="no trained head"):
        read_head(tmp_path / "killed")
    assert train_head(source, config, tmp_path / "killed").digest == head.digest
    files = [{path.name for path in Path(directory).iterdir()} for directory in (tmp_path / "killed", head.origin)]
    assert files[0] == files[1]


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([{"text": "a", "label": 1}] * 5, "too few"),
        ([{"text": f"text {i}", "label": 2} for i in range(40)], "nothing to learn"),
        ([{"text": f"text {i}", "label": i} for i in range(40)], "outside the score range"),
        ([{"text": f"text {i}", "other": i} for i in range(40)], "no column 'label'; there are id, text, other"),
        ([{"text": f"text {i}", "label": "good"} for i in range(40)], "does not hold numbers"),
        (
            [{"text": f"text {i}", "label": i % 5, "url": "https://www.one.org/"} for i in range(40)],
            "the 40 labelled documents are from 1 host or .* none is left for the test; add labels from more hosts",
        ),
    ],
)
def test_labels_that_cannot_train_a_head_are_refused_with_the_reason(rows, says, config, tmp_path):
    with pytest.raises(InputError, match=says):
        train_head(written(tmp_path / "labels.jsonl", rows), config, tmp_path / "head")


def test_a_handful_of_labels_trains_a_head_with_a_warning(documents, config, tmp_path):
    rows = [{**row, "label": number % 6} for number, row in enumerate(documents[:16])]
    warnings: list[str] = []
    sink = logger.add(warnings.append, level="WARNING", format="{message}")
    train_head(written(tmp_path / "labels.jsonl", rows), config, tmp_path / "head")
    logger.remove(sink)
    assert any(line.startswith("Only 16 labels: enough to try the pipeline") for line in warnings)


def test_a_criterion_that_is_labelled_on_two_hosts_only_is_named(documents, tmp_path):
    hosts = [f"{'x' if i % 2 else 'y'}.org" if i < 30 else f"{i}.org" for i in range(len(documents))]
    rows = [
        {**row, "a": i % 6, "b": i % 5 if i < 30 else None, "url": f"https://{host}"}
        for i, (row, host) in enumerate(zip(documents, hosts, strict=True))
    ]
    source, refused = written(tmp_path / "labels.jsonl", rows), []
    for seed in range(8):  # with some seeds, one of the two hosts is for the test
        config = TrainConfig(kind="hashing", label_column=["a", "b"], seed=seed)
        try:
            train_head(source, config, tmp_path / f"head-{seed}")
        except InputError as error:
            refused.append(str(error))
    assert any("with a label of b are in one fold, because they are from one or a few hosts" in why for why in refused)


def test_an_unknown_encoder_is_named(source, tmp_path):
    with pytest.raises(ConfigError, match=r"'\./no-such-encoder'"):
        train_head(source, TrainConfig(label_column="label", encoder="./no-such-encoder"), tmp_path / "head")


def test_evaluation_writes_figures_page_and_each_documents_score(head, source, tmp_path):
    evaluation, manifest = evaluate_head(head.origin, source, "label", tmp_path / "evaluation")
    assert evaluation.documents == manifest.rows == 60
    assert evaluation.spearman is not None
    assert evaluation.spearman > 0.5
    assert "<svg" in (tmp_path / "evaluation" / "evaluation.html").read_text()
    assert json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())["documents"] == 60


@given(st.lists(st.integers(0, 2**64 - 1), min_size=2, max_size=8, unique=True), st.data())
def test_test_documents_are_whole_hosts_and_close_to_their_share(keys, data):
    sizes = [data.draw(st.integers(1, 40)) for _ in keys]
    groups = np.repeat(np.array(keys, np.uint64), sizes)
    chosen = choose_test_documents(groups, 0.2)
    assert all(len(set(chosen[groups == key])) == 1 for key in np.unique(groups))
    assert not chosen.all()
    assert abs(chosen.sum() - 0.2 * len(groups)) <= 0.2 * len(groups)  # never farther than without any
    if max(sizes) == 1 and len(keys) >= 5:
        assert chosen.sum() == round(0.2 * len(groups))
