import multiprocessing
import random
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from scipy.stats import spearmanr

from ml_filter.errors import ConfigError, InputError
from ml_filter.heads.batching import run_in_batches, set_text_prefix
from ml_filter.heads.config import EMBEDDED_ENCODER, FinetuneConfig
from ml_filter.heads.encoder import load_encoder
from ml_filter.heads.finetune import finetune
from ml_filter.heads.info import CalibratedCriterion, HeadInfo
from ml_filter.heads.model import HeadConfig, HeadModel
from tests.small import small_bert

pytestmark = pytest.mark.model

GOOD, BAD = ["theorem", "proof", "energy", "cell"], ["cheap", "click", "win", "sale"]
CONFIG = FinetuneConfig(
    learning_rate=3e-3,
    head_learning_rate=1e-2,
    epochs=3,
    batch_size=8,
    checkpoint_steps=4,
    log_steps=2,
    patience=None,
    dtype="float32",
    processes=1,
)
"""15 steps, 5 per epoch; checkpoints at 4, 8, 12 and 15. Only the last one is at the end of an epoch."""


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """A model this small gains nothing from a second thread, and waits for it on a busy machine."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # for child processes
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tokenizer():
    return load_encoder(EMBEDDED_ENCODER).tokenizer


def documents(size, seed):
    """Texts of 3 to 25 good and bad words; the label is five times the share of good words."""
    draw = random.Random(seed)
    shares = [draw.random() for _ in range(size)]
    words = [
        [draw.choice(GOOD if draw.random() < share else BAD) for _ in range(draw.randint(3, 25))] for share in shares
    ]
    return [" ".join(text) for text in words], [5 * sum(word in GOOD for word in text) / len(text) for text in words]


def write(path, texts, labels, weights=None):
    labels = [row if isinstance(row, list) else [row] for row in labels]
    weights = weights or [[1.0] * len(row) for row in labels]
    numbers = pa.list_(pa.float32())
    pq.write_table(
        pa.table({"text": texts, "labels": pa.array(labels, numbers), "weights": pa.array(weights, numbers)}), path
    )
    return path


@pytest.fixture
def files(tmp_path):
    return write(tmp_path / "train.parquet", *documents(40, 1)), write(tmp_path / "val.parquet", *documents(24, 2))


def small_model(*, dropout=0.1, task="regression", criteria=("score",)):
    """An encoder of two layers with random weights, and a head."""
    encoder = small_bert(hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
    info = HeadInfo(
        engine="encoder", criteria=[CalibratedCriterion(name=n, low=0, high=5, threshold=3) for n in criteria]
    )
    torch.manual_seed(0)
    return HeadModel(
        HeadConfig(encoder=encoder.to_dict(), layers=[2], max_tokens=32, task=task, head=info.model_dump(mode="json"))
    )


def scores_of(model, tokenizer, path):
    texts = pq.read_table(path)["text"].to_pylist()
    return run_in_batches(texts, tokenizer, model, max_tokens=32, batch_tokens=512, device=torch.device("cpu"))


def same(first, second):
    return all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())


def close(first, second, tolerance):
    pairs = [(value, second.state_dict()[name]) for name, value in first.state_dict().items()]
    return max((a - b).abs().max().item() for a, b in pairs if a.is_floating_point()) < tolerance


def test_training_learns_and_loads_the_best_checkpoint(tokenizer, files, tmp_path):
    model = small_model()
    history = finetune(model, tokenizer, *files, CONFIG, tmp_path / "scratch", seed=0)
    best = max(row["eval_spearman"] for row in history if "eval_spearman" in row)
    labels = [row[0] for row in pq.read_table(files[1])["labels"].to_pylist()]
    assert best > 0.8
    assert spearmanr(scores_of(model, tokenizer, files[1])[:, 0], labels).statistic == pytest.approx(best)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_text_prefix_is_part_of_the_training_texts(files, tmp_path):
    tables = [pq.read_table(path) for path in files]
    prefixed = [
        write(
            tmp_path / f"prefixed-{index}.parquet",
            [f"passage: {text}" for text in table["text"].to_pylist()],
            table["labels"].to_pylist(),
        )
        for index, table in enumerate(tables)
    ]
    models = [small_model(), small_model()]
    for model, read, prefix in ((models[0], files, "passage: "), (models[1], prefixed, "")):
        tokenizer = load_encoder(EMBEDDED_ENCODER).tokenizer
        set_text_prefix(tokenizer, prefix)
        finetune(model, tokenizer, *read, CONFIG, tmp_path / f"scratch {prefix}", seed=0)
    assert same(*models)


def test_history_has_training_and_validation_figures_by_step(tokenizer, files, tmp_path):
    history = finetune(small_model(), tokenizer, *files, CONFIG, tmp_path, seed=0)
    assert [row["step"] for row in history] == [2, 4, 6, 8, 10, 12, 14, 15]
    assert [row["step"] for row in history if "eval_loss" in row] == [4, 8, 12, 15]
    assert all(row["grad_norm"] > 0 and row["loss"] >= 0 for row in history)
    assert history[1].keys() == {
        *("step", "epoch", "loss", "learning_rate", "grad_norm"),
        *("eval_loss", "eval_spearman", "eval_pearson", "eval_mae", "eval_macro_f1"),
    }
    rates = [row["learning_rate"] for row in history]
    assert rates[0] == CONFIG.learning_rate / 2  # the second of two warm-up steps, 10% of 15
    assert rates[1:] == sorted(rates[1:], reverse=True)
    assert rates[-1] == pytest.approx(CONFIG.learning_rate / 13)  # the last of the remaining 13


@pytest.mark.parametrize("task", ["classification", "ordinal"])
def test_every_task_can_be_trained_in_the_default_dtype(task, tokenizer, files, tmp_path):
    config = CONFIG.model_copy(update={"dtype": "auto", "schedule": "cosine"})
    history = finetune(small_model(task=task), tokenizer, *files, config, tmp_path, seed=0)
    assert max(row.get("eval_spearman", 0) for row in history) > 0.6


def test_only_the_chosen_top_layers_and_the_head_are_trained(tokenizer, files, tmp_path):
    model, before = small_model(), small_model().state_dict()
    finetune(model, tokenizer, *files, CONFIG.model_copy(update={"layers": 1}), tmp_path, seed=0)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert {".".join(name.split(".")[:4]) for name in changed if name.startswith("encoder")} == {
        "encoder.encoder.layer.1"
    }
    assert {name for name in changed if name.startswith("head")} == {"head.out.weight", "head.out.bias"}


def test_training_is_reproducible_for_a_seed(tokenizer, files, tmp_path):
    torch.set_num_threads(2)
    short = CONFIG.model_copy(update={"epochs": 1})
    files = write(tmp_path / "few.parquet", *documents(16, 1)), files[1]
    models = [small_model(), small_model(), small_model()]
    histories = [
        finetune(model, tokenizer, *files, short, tmp_path / str(index), seed=seed)
        for index, (model, seed) in enumerate(zip(models, [0, 0, 1], strict=True))
    ]
    assert same(models[0], models[1])
    assert histories[0] == histories[1]
    assert not same(models[0], models[2])


@pytest.mark.slow
@pytest.mark.parametrize("when", ["checkpoint-4 started", "checkpoint-8 complete"])
def test_a_killed_run_resumes_to_the_same_bits(when, tokenizer, files, tmp_path):
    arguments = (small_model(), tokenizer, *files, CONFIG, tmp_path / "killed")
    running = multiprocessing.get_context("fork").Process(target=finetune, args=arguments, kwargs={"seed": 0})
    running.start()
    name, state = when.split()
    pattern = f"run-*/{name}" + ("/complete.json" if state == "complete" else "")
    while running.is_alive() and not list((tmp_path / "killed").glob(pattern)):
        time.sleep(0.0005)
    running.kill()
    running.join()
    assert running.exitcode == -signal.SIGKILL
    left = [path.name for path in (tmp_path / "killed").glob("run-*/checkpoint-*")]
    assert left
    assert "checkpoint-15" not in left

    resumed, undisturbed = small_model(), small_model()
    histories = [
        finetune(model, tokenizer, *files, CONFIG, tmp_path / scratch, seed=0)
        for model, scratch in ((resumed, "killed"), (undisturbed, "undisturbed"))
    ]
    assert same(resumed, undisturbed)
    assert histories[0] == histories[1]


@pytest.mark.parametrize(
    ("damaged", "steps"),
    [("model.safetensors", 4), ("optimizer.pt", None), ("trainer_state.json", 4), ("complete.json", None)],
)
def test_a_truncated_checkpoint_is_skipped(damaged, steps, tokenizer, files, tmp_path):
    config = CONFIG.model_copy(update={"checkpoint_steps": steps})
    model, again = small_model(), small_model()
    history = finetune(model, tokenizer, *files, config, tmp_path, seed=0)
    file = next(tmp_path.glob("run-*/checkpoint-15")) / damaged
    file.write_bytes(file.read_bytes()[:-10])
    assert finetune(again, tokenizer, *files, config, tmp_path, seed=0) == history
    assert same(again, model)


def test_a_resumed_run_continues_from_its_checkpoint(tokenizer, files, tmp_path):
    finetune(small_model(), tokenizer, *files, CONFIG, tmp_path, seed=0)
    kept = {path.name: path for path in tmp_path.glob("run-*/checkpoint-*")}
    assert kept.keys() == {"checkpoint-12", "checkpoint-15"}  # the best and the last
    shutil.rmtree(kept["checkpoint-15"])
    before = {path: path.stat().st_mtime_ns for path in kept["checkpoint-12"].iterdir()}
    finetune(small_model(), tokenizer, *files, CONFIG, tmp_path, seed=0)
    assert kept["checkpoint-15"].exists()
    assert {path: path.stat().st_mtime_ns for path in kept["checkpoint-12"].iterdir()} == before


def test_a_finished_run_is_loaded_without_training(tokenizer, files, tmp_path):
    config = CONFIG.model_copy(update={"learning_rate": 1e-12, "head_learning_rate": 1e-12, "patience": 1})
    model, again = small_model(), small_model()
    history = finetune(model, tokenizer, *files, config, tmp_path, seed=0)
    assert history[-1]["step"] == 8  # the second evaluation was no better
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("run-*/checkpoint-*/*")}
    assert finetune(again, tokenizer, *files, config, tmp_path, seed=0) == history
    assert same(again, model)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("run-*/checkpoint-*/*")} == before


def test_only_the_newest_and_the_best_checkpoint_are_kept(tokenizer, files, tmp_path):
    finetune(small_model(), tokenizer, *files, CONFIG, tmp_path, seed=0)
    kept = list(tmp_path.glob("run-*/checkpoint-*"))
    assert "checkpoint-15" in {path.name for path in kept}
    assert len(kept) <= 2
    assert all((path / "model.safetensors").exists() and not list(path.glob("*.bin.*")) for path in kept)


def test_other_documents_do_not_resume_from_a_foreign_checkpoint(tokenizer, files, tmp_path):
    model, other = small_model(), small_model()
    finetune(small_model(), tokenizer, *files, CONFIG, tmp_path / "scratch", seed=0)
    changed = write(tmp_path / "changed.parquet", *documents(40, 9))
    finetune(model, tokenizer, changed, files[1], CONFIG, tmp_path / "scratch", seed=0)
    finetune(other, tokenizer, changed, files[1], CONFIG, tmp_path / "fresh", seed=0)
    assert same(model, other)


def test_missing_labels_and_labels_of_weight_zero_have_no_effect(tokenizer, files, tmp_path):
    texts, labels = documents(40, 1)
    weights = [[0.0, 1.0] if index % 3 == 0 else [2.0, 1.0] for index in range(40)]
    trained = []
    for name, unused in (("a", 0.0), ("b", 5.0), ("c", float("nan"))):
        both = [[unused if index % 3 == 0 else label, 5 - label] for index, label in enumerate(labels)]
        model = small_model(criteria=("clear", "dull"))
        train = write(tmp_path / f"{name}.parquet", texts, both, weights)
        val = write(tmp_path / "val2.parquet", texts, [[label, 5 - label] for label in labels])
        history = finetune(model, tokenizer, train, val, CONFIG, tmp_path / name, seed=0)
        trained.append(model)
    assert same(trained[0], trained[1])
    assert same(trained[0], trained[2])
    figures = history[-1]
    assert figures["eval_spearman"] == pytest.approx(
        np.mean([figures["eval_spearman_clear"], figures["eval_spearman_dull"]])
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"batch_size": 2, "gradient_accumulation": 4},
        {"gradient_checkpointing": True},
        pytest.param({"batch_size": 4, "processes": 2}, marks=pytest.mark.slow),
    ],
    ids=["accumulated", "checkpointed", "two processes"],
)
def test_a_batch_in_parts_trains_like_a_whole_batch(changes, tokenizer, files, tmp_path):
    texts, labels = documents(40, 1)
    weights = [[1.0 + index % 5] for index in range(40)]
    labels = [[float("nan")] if index % 7 == 0 else [label] for index, label in enumerate(labels)]
    train = write(tmp_path / "uneven.parquet", texts, labels, weights)
    whole, parts = small_model(dropout=0.0), small_model(dropout=0.0)
    gentle = CONFIG.model_copy(update={"learning_rate": 1e-4, "head_learning_rate": 1e-3})
    finetune(whole, tokenizer, train, files[1], gentle, tmp_path / "whole", seed=0)
    finetune(parts, tokenizer, train, files[1], gentle.model_copy(update=changes), tmp_path / "parts", seed=0)
    assert not close(whole, small_model(dropout=0.0), 1e-4)
    assert close(whole, parts, 1e-4)


def test_more_layers_than_the_encoder_has_are_refused(tokenizer, files, tmp_path):
    with pytest.raises(ConfigError, match=r"finetune\.layers is 3, but the encoder has only 2 layers"):
        finetune(small_model(), tokenizer, *files, CONFIG.model_copy(update={"layers": 3}), tmp_path, seed=0)


def test_constant_labels_are_refused(tokenizer, files, tmp_path):
    texts, _ = documents(24, 2)
    constant = write(tmp_path / "constant.parquet", texts, [3.0] * 24)
    with pytest.raises(InputError, match="no evaluation could compute spearman"):
        finetune(small_model(), tokenizer, files[0], constant, CONFIG, tmp_path, seed=0)


def test_torch_determinism_is_restored(tokenizer, files, tmp_path):
    finetune(small_model(), tokenizer, *files, CONFIG, Path(tmp_path), seed=0)
    assert not torch.are_deterministic_algorithms_enabled()
