"""Whole ablations of a small corpus, by the command, undisturbed and killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from ml_filter.cli import main
from ml_filter.documents.config import SourceConfig
from ml_filter.documents.manifest import read_manifest
from ml_filter.downstream.ablation.corpora import heads_of, read_filtered
from ml_filter.downstream.ablation.result import read_ablation
from ml_filter.downstream.ablation.run import ablate_filter
from ml_filter.errors import ConfigError, InputError
from ml_filter.evaluation.promotion import ablation_shows_help
from ml_filter.heads.config import TrainConfig
from ml_filter.heads.store import read_head
from ml_filter.heads.train import train_head
from tests.downstream.ablation.corpora import small_config, text_of, write_filtered, write_filtered_by_head, write_gold

OPTIONS = ["--depth", "1", "--passes", "2", "--seeds", "2", "--control-seeds", "2", "--arm-tokens", "1500"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A head, the corpus that it filtered, gold, another corpus, and in `undisturbed` an ablation of them."""
    root = tmp_path_factory.mktemp("ablation")
    write_filtered_by_head(root)
    write_gold(root / "gold.jsonl")
    rows = [{"text": text_of("good", 200 + n)} for n in range(40)]
    (root / "other.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main([*command(root, "undisturbed"), "--workers", "1"]) == 0
    return root


def command(root: Path, output: str) -> list[str]:
    extra = ["--set", "training.checkpoint_steps=5", "--set", f"corpora.other.paths=[{root / 'other.jsonl'}]"]
    extra += ["--set", f"targets.more.paths=[{root / 'gold.jsonl'}]", "--output", str(root / output)]
    return ["ablate", str(root / "filtered"), "--gold", str(root / "gold.jsonl"), *OPTIONS, *extra]


def only(directory: Path, pattern: str) -> Path:
    (path,) = directory.glob(pattern)
    return path


@pytest.mark.slow
@pytest.mark.model
def test_killed_ablation_ends_like_an_undisturbed_one(root, capsys):
    process = subprocess.Popen([sys.executable, "-m", "ml_filter.cli", *command(root, "killed"), "--workers", "2"])
    while not [*root.glob("killed/arms-*/.progress/scratch/*/checkpoint.safetensors")]:  # a model is half trained
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    arms = only(root / "killed", "arms-*")
    assert not (arms / "manifest.json").exists()
    assert main([*command(root, "killed"), "--workers", "1"]) == 0
    assert "helps: models trained on filtered documents need" in capsys.readouterr().out

    directories = [only(root / name, "ablation-*") for name in ("killed", "undisturbed")]
    a, b = (json.loads((directory / "ablation.json").read_text()) for directory in directories)
    for ablation in (a, b):
        del ablation["cpu_seconds"]
        for model in ablation["models"]:
            del model["cpu_seconds"]
    assert a == b
    assert a["verdict"] == "helps"
    assert a["left_out"] == {"filtered": 1, "rejected": 0, "other": 0}
    assert len({arm["tokens"] for arm in a["arms"]}) == 1

    manifest = read_manifest(arms)
    assert manifest.digest == read_manifest(only(root / "undisturbed", "arms-*")).digest
    assert not (arms / ".progress").exists()
    rows = pq.read_table(manifest.shard_paths()[0]).to_pylist()
    assert {row["target"] for row in rows} == {"high", "low", "more"}
    assert len(rows) == 48
    gains = {(c["arm"], c["target"]): c["gain"]["value"] for c in a["comparisons"]}
    assert gains["other", "high"] > 0 > gains["other", "low"]
    page = (directories[0] / "ablation.html").read_text()
    assert "<h1>The filter helps</h1>" in page
    assert "2510.00866" in page
    assert "2512.24503" in page
    assert "<script" not in page


@pytest.mark.model
def test_settings_of_the_report_train_nothing_again(root):
    output = Path(shutil.copytree(root / "undisturbed", root / "changed"))
    first = read_ablation(only(output, "ablation-*"))
    trained = {path: path.stat().st_mtime_ns for path in output.glob("arms-*/**/*")}
    changed = ["confidence=0.5001", "resamples=100", f"pilot={only(output, 'ablation-*')}"]
    changed += ["training.checkpoint_steps=7", "training.workers=2", "training.device=cpu"]
    assert main([*command(root, "changed"), *(part for text in changed for part in ("--set", text))]) == 0
    assert {path: path.stat().st_mtime_ns for path in output.glob("arms-*/**/*")} == trained
    second = next(a for a in map(read_ablation, output.glob("ablation-*")) if a.config["confidence"] == 0.5001)
    for before, after in zip(first.comparisons, second.comparisons, strict=True):
        assert after.gain.value == before.gain.value
        assert after.gain.high - after.gain.low < before.gain.high - before.gain.low
    assert second.power.spread == first.spread != first.power.spread


@pytest.mark.model
def test_ablation_lets_only_the_head_be_promoted_that_scored_its_corpus(root):
    directory = str(only(root / "undisturbed", "ablation-*"))
    helps, reason = ablation_shows_help(directory, read_head(root / "head"), "version 2")
    assert helps
    assert reason.startswith(f"the ablation in {directory} finds 'helps': models trained on filtered documents need")
    other = train_head(
        SourceConfig(paths=[str(root / "labels.jsonl")]),
        TrainConfig(kind="hashing", label_column="label", seed=1),
        root / "other-head",
    )
    helps, reason = ablation_shows_help(directory, other, "version 2")
    assert not helps
    assert reason.startswith(f"the ablation in {directory} is of {root / 'head'}, not of version 2")


def test_settings_of_the_models_are_another_training():
    gold = SourceConfig(paths=["gold.jsonl"])
    same, other = small_config(gold, confidence=0.9), small_config(gold, training={"seed": 1})
    assert same.of_arms == small_config(gold).of_arms != other.of_arms


def test_pilot_that_is_no_ablation_is_an_error_before_anything_is_trained(tmp_path):
    filtered = write_filtered(tmp_path)
    config = small_config(write_gold(tmp_path / "gold.jsonl"), pilot=filtered)
    with pytest.raises(InputError, match="holds filtered, not an ablation; make one with ablate"):
        ablate_filter(filtered, config, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_further_corpus_that_is_too_small_is_an_error_before_anything_is_trained(tmp_path):
    (tmp_path / "other.jsonl").write_text("".join(json.dumps({"text": text_of("good", n)}) + "\n" for n in range(8)))
    other = {"other": SourceConfig(paths=[str(tmp_path / "other.jsonl")])}
    config = small_config(write_gold(tmp_path / "gold.jsonl"), corpora=other)
    with pytest.raises(ConfigError, match=r"corpora\.other has only [\d,]+ tokens.*set arm_tokens to at most"):
        ablate_filter(write_filtered(tmp_path), config, str(tmp_path / "out"))
    assert not [*tmp_path.glob("out/**/checkpoint.safetensors")]


def test_filtered_corpus_without_what_was_dropped_is_an_error(tmp_path):
    config = small_config(write_gold(tmp_path / "gold.jsonl"))
    with pytest.raises(InputError, match=r"does not have what the filter dropped.*filter again with --dropped"):
        ablate_filter(write_filtered(tmp_path, dropped=False), config, str(tmp_path / "out"))


def test_directory_that_is_not_filtered_is_an_error(tmp_path):
    with pytest.raises(InputError, match="is not a filtered corpus; make one with ml-filter filter SCORED --dropped"):
        ablate_filter(str(tmp_path), small_config(write_gold(tmp_path / "gold.jsonl")), str(tmp_path / "out"))


def test_output_at_a_url_is_an_error(tmp_path):
    config = small_config(write_gold(tmp_path / "gold.jsonl"))
    with pytest.raises(ConfigError, match="is a URL; models are trained in a local directory"):
        ablate_filter(write_filtered(tmp_path), config, "memory://ablation")


def test_unfinished_directory_has_no_ablation(tmp_path):
    with pytest.raises(InputError, match=r"has no ablation\.json; make one with ml-filter ablate"):
        read_ablation(tmp_path)


def test_documents_that_no_head_scored_have_no_heads(tmp_path):
    assert heads_of(read_filtered(write_filtered(tmp_path))[0]) == []
