"""The engines: each is trained by the same call, saved and loaded the same way, and scores as it did in training."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.stats import spearmanr

from ml_filter.criterion import Criterion
from ml_filter.documents.config import SourceConfig
from ml_filter.errors import ConfigError
from ml_filter.heads.batching import set_text_prefix
from ml_filter.heads.config import FinetuneConfig, HeadSettings, TrainConfig
from ml_filter.heads.info import read_info
from ml_filter.heads.kinds import create_trainer, load_head
from ml_filter.heads.kinds.base import FOLDS, fold_numbers
from ml_filter.heads.train import train_head
from ml_filter.scoring.config import ScoreConfig

pytestmark = pytest.mark.model

FLOAT32 = ScoreConfig(dtype="float32")


@pytest.fixture
def config(small_encoder):
    def config(**settings):
        return TrainConfig(**{"label_column": "label", "max_tokens": 64, "encoder": small_encoder, **settings})

    return config


def texts_and_labels(labelled):
    rows = [json.loads(line) for line in labelled.read_text().splitlines()]
    return [row["text"] for row in rows], np.array([row["label"] for row in rows])


@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "encoder"},
        {"kind": "encoder", "head": HeadSettings(model="linear"), "layers": 2},
        {"kind": "encoder", "windows": 3, "combine": "mean"},
        {"kind": "encoder", "windows": 3, "combine": "max"},
        {"kind": "encoder", "windows": 3, "text_prefix": "passage: "},
        {"kind": "encoder", "head": HeadSettings(model="linear", task="ordinal", epochs=3)},
        {"kind": "hashing"},
        {"kind": "static"},
        {"kind": "stack"},
    ],
    ids=["kernel", "linear", "windows, mean", "windows, max", "prefix", "ordinal", "hashing", "static", "stack"],
)
def test_a_loaded_head_scores_as_it_did_when_it_was_trained(settings, config, labelled, tmp_path):
    head = train_head(SourceConfig(paths=[str(labelled)]), config(**settings), tmp_path / "head")
    texts, _ = texts_and_labels(labelled)
    [criterion] = read_info(head.origin).criteria
    with create_trainer(config(**settings), [criterion], tmp_path / "cache") as member:
        member.add(texts)
        keep = np.arange(len(texts))
        labels = np.array(texts_and_labels(labelled)[1])[:, None]
        member.cross_fit(keep, labels, np.ones_like(labels), keep % FOLDS)
        member.fit(keep, labels, np.ones_like(labels))
        wanted = member.predict(keep)[:, 0]
        (tmp_path / "other").mkdir()
        member.save(tmp_path / "other", read_info(head.origin))
    scores = load_head(tmp_path / "other", FLOAT32).predict(texts)[:, 0]
    assert scores == pytest.approx(wanted, abs=0.06)  # embedded in bfloat16 where the hardware has it
    assert not [path for path in Path(head.origin).rglob("*") if path.suffix in (".bin", ".pt", ".pkl")]


def test_cross_fitted_scores_come_from_fits_that_did_not_see_the_document(config, labelled, tmp_path):
    texts, labels = texts_and_labels(labelled)
    labels = labels[:, None].copy()
    labels[7] = 0  # a wrong label that a fit on it would learn
    places = np.arange(len(texts))
    criterion = Criterion(name="label", low=0, high=5, threshold=3)
    with create_trainer(config(kind="hashing"), [criterion], tmp_path) as member:
        member.add(texts)
        apart = member.cross_fit(places, labels, np.ones_like(labels), places % FOLDS)
        inside = places % FOLDS != 7 % FOLDS
        member.fit(places[inside], labels[inside], np.ones_like(labels[inside]))
        assert apart[7] == member.predict(np.array([7]))[0]


def test_a_stack_gives_no_member_a_negative_weight(config, labelled, tmp_path):
    head = train_head(SourceConfig(paths=[str(labelled)]), config(kind="stack"), tmp_path / "head")
    stack = json.loads((Path(head.origin) / "config.json").read_text())["stack"]
    assert stack["members"] == ["encoder", "hashing"]
    assert np.min(stack["weights"]) >= 0
    assert {path.parent.name for path in Path(head.origin).rglob("model.safetensors")} == {"encoder", "hashing"}


def test_several_criteria_are_scored_side_by_side(labelled, tmp_path):
    path = tmp_path / "two.jsonl"
    rows = [json.loads(line) for line in labelled.read_text().splitlines()]
    for number, row in enumerate(rows):
        row["short"] = 5.0 if len(row["text"]) < 1000 else 0.0
        if number % 3 == 0:
            del row["label"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = TrainConfig(label_column=["label", "short"], max_tokens=64)
    head = train_head(SourceConfig(paths=[str(path)]), settings, tmp_path / "head")
    assert list(head.training.test) == ["label", "short"]
    assert head.training.cross_validated["label"].documents < head.training.cross_validated["short"].documents
    scores = load_head(head.origin, FLOAT32).score([row["text"] for row in rows])
    assert scores.shape == (60, 2)
    assert spearmanr(scores[:, 1], [row["short"] for row in rows]).statistic > 0.5


def test_an_encoder_is_trained_with_its_head_and_its_history_is_kept(config, labelled, tmp_path):
    settings = config(
        head=HeadSettings(model="linear"), layers=1, finetune=FinetuneConfig(layers=1, epochs=1, batch_size=8)
    )
    source = SourceConfig(paths=[str(labelled)])
    head = train_head(source, settings, tmp_path / "head")
    frozen = train_head(source, settings.model_copy(update={"finetune": None}), tmp_path / "frozen")
    assert [row["step"] for row in head.training.history if "eval_spearman" in row]
    assert frozen.training.history == []  # solved, not trained
    texts, _ = texts_and_labels(labelled)
    engines = [load_head(made.origin, FLOAT32) for made in (head, frozen)]
    weights = [engine.model.encoder.state_dict() for engine in engines]
    changed = {name for name in weights[0] if not weights[0][name].equal(weights[1][name])}
    assert changed
    assert all(name.startswith(("encoder.layer.1.", "pooler")) for name in changed)
    assert not np.allclose(engines[0].score(texts), engines[1].score(texts))
    assert not (tmp_path / "head" / ".finetune").exists()


@pytest.fixture
def encoder_with_prompts(small_encoder, tmp_path):
    """The small encoder as if it had been trained with prompts."""
    here = tmp_path / "encoder"
    shutil.copytree(small_encoder, here)
    prompts = {"query": "query: ", "passage": "passage: "}
    (here / "config_sentence_transformers.json").write_text(json.dumps({"prompts": prompts}))
    return str(here)


def test_the_prompt_of_the_encoders_own_files_is_read_before_each_text(
    config, encoder_with_prompts, labelled, tmp_path
):
    head = train_head(SourceConfig(paths=[str(labelled)]), config(encoder=encoder_with_prompts), tmp_path / "head")
    engines = [load_head(head.origin, FLOAT32) for _ in range(2)]
    assert engines[0].model.config.text_prefix == "passage: "
    set_text_prefix(engines[1].tokenizer, "")
    texts, _ = texts_and_labels(labelled)
    wanted = engines[1].predict(["passage: " + text for text in texts])
    assert engines[0].predict(texts) == pytest.approx(wanted, abs=1e-5)
    assert not np.allclose(engines[1].predict(texts), wanted, atol=1e-3)


def test_a_set_prefix_goes_before_the_encoders_own(config, encoder_with_prompts, tmp_path):
    def embedded(text, **settings):
        with create_trainer(
            config(**settings), [Criterion(name="label", low=0, high=5, threshold=3)], tmp_path
        ) as member:
            member.add([text])
            return member.windows_of(np.arange(1))[0][0].tolist()

    text = "Water boils at 100 degrees."
    plain = embedded(text)
    # All are kept in one cache, and not mistaken for each other.
    assert embedded(text, encoder=encoder_with_prompts) == embedded("passage: " + text) != plain
    assert embedded(text, encoder=encoder_with_prompts, text_prefix="") == plain
    assert embedded(text, text_prefix="title: ") == embedded("title: " + text)


def test_a_prefix_that_leaves_no_room_for_texts_is_refused(config, tmp_path):
    settings = config(text_prefix="one two three four " * 16)
    trainer = create_trainer(settings, [Criterion(name="label", low=0, high=5, threshold=3)], tmp_path)
    with pytest.raises(ConfigError, match="leaves no room for text in 64 tokens"), trainer:
        pass


def test_the_curve_of_a_head_trained_step_by_step_is_kept(config, labelled, tmp_path):
    settings = config(kind="stack", head=HeadSettings(model="linear", task="ordinal", epochs=3))
    head = train_head(SourceConfig(paths=[str(labelled)]), settings, tmp_path / "head")
    assert [row["epoch"] for row in head.training.history] == [1, 2, 3]
    assert all(row["eval_loss"] > 0 for row in head.training.history)


def test_a_kernel_head_cannot_be_trained_with_the_encoder():
    with pytest.raises(ValidationError, match=r"head\.model linear or mlp"):
        TrainConfig(finetune=FinetuneConfig())


def test_documents_of_a_group_are_in_one_fold():
    groups = np.array([3, 8, 3, 2**64 - 1], dtype=np.uint64)
    folds = fold_numbers(groups)
    assert folds[0] == folds[2]
    assert set(folds) <= set(range(FOLDS))
