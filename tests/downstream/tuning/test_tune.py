"""Tuning from end to end on a tiny base: what is written, what it learns, and what a kill leaves."""

import os
import pickle
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from transformers import AutoModelForCausalLM

from ml_filter.cli import main
from ml_filter.documents.config import SourceConfig
from ml_filter.downstream.tuning.base import find_base
from ml_filter.downstream.tuning.result import read_tuned
from ml_filter.downstream.tuning.tune import tune_model
from ml_filter.errors import ConfigError, InputError
from ml_filter.heads.checkpoints import read_state
from ml_filter.heads.trained import file_digests
from ml_filter.location import Location
from tests.publishing.hub_server import local_hub

pytestmark = pytest.mark.model

KILLED = """
import os, signal, sys
from transformers import TrainerCallback
from ml_filter.documents.config import SourceConfig
from ml_filter.downstream.tuning import train
from ml_filter.downstream.tuning.config import TuneConfig
from ml_filter.downstream.tuning.tune import tune_model

class Kill(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 5:
            os.kill(os.getpid(), signal.SIGKILL)

callbacks = train._callbacks
train._callbacks = lambda *given: [*callbacks(*given), Kill()]
data, config, output = sys.argv[1:]
tune_model(SourceConfig(paths=[data]), TuneConfig.model_validate_json(config), output)
"""


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.slow
def test_a_killed_and_resumed_run_ends_alike_and_a_changed_checkpoint_is_not_read(triples, config, tmp_path):
    config = config.model_copy(update={"batch_size": 16})  # three batches an epoch: the kill is in the second
    arguments = [str(triples), config.model_dump_json(), str(tmp_path / "killed")]
    done = subprocess.run([sys.executable, "-c", KILLED, *arguments], check=False, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    [kept] = (tmp_path / "killed" / ".tuning").glob("*/checkpoint-*")
    assert kept.name == "checkpoint-3"
    shutil.copytree(tmp_path / "killed", tmp_path / "changed")
    [changed] = (tmp_path / "changed" / ".tuning").glob("*/checkpoint-*")
    (changed / "optimizer.pt").write_bytes(pickle.dumps(Payload(tmp_path / "exploited")))
    with pytest.raises(InputError, match=r"has no tuning\.json; make one with ml-filter tune"):
        read_tuned(tmp_path / "killed")
    source = SourceConfig(paths=[str(triples)])
    earlier = read_state(kept).log_history[-1]["cpu_seconds"]
    undisturbed = tune_model(source, config, tmp_path / "whole")
    started = time.process_time()
    killed = tune_model(source, config, tmp_path / "killed")
    seconds = time.process_time() - started
    assert earlier + seconds / 2 < killed.result.cpu_seconds < earlier + seconds, "those of the killed process too"
    for model in (killed, tune_model(source, config, tmp_path / "changed")):
        assert model.digest == undisturbed.digest
        assert model.result.figures == undisturbed.result.figures
        assert model.result.history == undisturbed.result.history
    assert not (tmp_path / "exploited").exists()
    assert not (tmp_path / "killed" / ".tuning").exists()


def test_sft_lowers_the_held_out_loss_and_writes_adapter_model_pages_and_lineage(triples, config, tmp_path, capsys):
    output = tmp_path / "tuned"
    settings = config.model_dump(mode="json", include={"max_steps", "batch_size", "learning_rate", "held_out_share"})
    options = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    command = ["tune", str(triples), "--base", config.base, *options, "--gradient-accumulation", "1", "-o", str(output)]
    assert main(command) == 0
    assert "loss change" in capsys.readouterr().out
    model = read_tuned(output)
    assert model.result.figures["loss_change"].high < 0
    counts = model.result.data.counts
    assert counts["train"] + counts["held_out"] == counts["read"] == len(triples.read_text().splitlines())
    assert {name.partition("/")[0] for name in model.result.files} == {
        "README.md",
        "adapter",
        "model",
        "rejects.jsonl",
        "report.html",
        "trained_on.arrow",
    }
    assert model.result.files == {k: v for k, v in file_digests(output).items() if k != "tuning.json"}
    written = "".join((output / name).read_text() for name in ("README.md", "adapter/adapter_config.json"))
    assert str(tmp_path) not in written
    assert config.base not in written
    assert model.result.base.digest in written
    assert [row["step"] for row in model.result.history if "eval_loss" in row] == [0, 8]
    assert f"took {model.result.cpu_seconds / 60:.1f} processor minutes" in (output / "report.html").read_text()
    record = model.record()
    assert record.metrics["loss_change"] < 0
    assert all(row.keys() & {"loss", "eval_loss"} for row in record.history)
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    assert main(command) == 0
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == before
    assert main([*command, "--license", "mit"]) == 0
    changed = {path.name for path, written in before.items() if path.is_file() and path.stat().st_mtime_ns != written}
    assert changed == {"README.md", "report.html", "tuning.json"}, "a corrected license does not train again"
    assert "license: mit" in (output / "README.md").read_text()
    assert read_tuned(output).result == model.result.model_copy(
        update={
            "config": model.result.config.model_copy(update={"license": "mit"}),
            "files": {name: digest for name, digest in file_digests(output).items() if name != "tuning.json"},
        }
    )
    assert main([*command, "--seed", "1"]) == 2
    assert "already has a model with other data or settings" in capsys.readouterr().err

    with local_hub(tmp_path / "hub-cache") as hub:
        assert main([*command, "--push", "owner/tuned", "--private"]) == 0
        files = hub.models["owner/tuned"]
        assert {"model.safetensors", "chat_template.jinja", "README.md", "adapter/adapter_config.json"} <= files.keys()
        assert not {"report.html", "rejects.jsonl", "trained_on.arrow"} & files.keys()
        assert not any(str(part).encode() in files["tuning.json"] for part in (tmp_path, triples.parent, config.base))
        pushed = find_base("hf://owner/tuned")
        assert pushed.name.startswith("hf://owner/tuned@")
        assert (pushed.directory / "model.safetensors").read_bytes() == files["model.safetensors"]


def test_a_missing_token_is_an_error_before_any_work(triples, config, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(ConfigError, match="pushing to o/n requires a token"):
        tune_model(SourceConfig(paths=[str(triples)]), config.model_copy(update={"push": "o/n"}), tmp_path / "tuned")
    assert not (tmp_path / "tuned").exists()


def test_dpo_of_all_weights_prefers_the_chosen_answers(triples, config, tmp_path):
    config = config.model_copy(update={"method": "dpo", "weights": "full", "learning_rate": 1e-3})
    model = tune_model(SourceConfig(paths=[str(triples)]), config, tmp_path / "tuned")
    figures = model.result.figures
    assert figures["base_loss"].value == pytest.approx(0.6931, abs=1e-4)
    assert {"rewards/margins", "rewards/accuracies", "grad_norm"} <= model.result.history[1].keys()
    last = model.result.history[-1]
    assert figures["loss"].value == pytest.approx(last["eval_loss"], abs=0.02)  # of pairs, and of means over batches
    assert figures["loss_change"].high < 0
    assert figures["accuracy"].value > 0.9
    assert not (tmp_path / "tuned" / "adapter").exists()


def test_packed_conversations_do_not_see_each_other(triples, config, tmp_path, monkeypatch):
    """All conversations in one packed sequence have the loss that they have in one batch."""
    config = config.model_copy(update={"max_steps": 1, "max_tokens": 4096, "batch_size": 64})
    update = {"packing": True, "batch_size": 1, "activation_checkpointing": True}
    losses, batches = [], []
    monkeypatch.setenv("ML_FILTER_CACHE_DIR", str(tmp_path / "cache"))
    for name, settings in (("plain", config), ("packed", config.model_copy(update=update))):
        output = f"memory://tuning/{name}"  # a URL
        tune_model(SourceConfig(paths=[str(triples)]), settings, output)
        model = read_tuned(output)
        assert all((Location(output) / file).exists() for file in model.result.files)
        [row] = [row for row in model.result.history if "loss" in row]
        losses.append(row["loss"])
        batches.append(row["epoch"])
    licensed = tune_model(SourceConfig(paths=[str(triples)]), settings.model_copy(update={"license": "mit"}), output)
    assert licensed.digest == model.digest
    assert b"license: mit" in (Location(output) / "README.md").read_bytes()
    assert batches == [1, 1]  # a step saw everything
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)


def test_four_bits_are_trained_and_merged_into_the_full_base(triples, config, tmp_path):
    config = config.model_copy(update={"weights": "qlora"})
    model = tune_model(SourceConfig(paths=[str(triples)]), config, tmp_path / "tuned")
    assert model.result.figures["loss_change"].value < 0
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "tuned" / "model")
    assert not hasattr(merged.config, "quantization_config")
    assert merged.dtype == torch.float32
