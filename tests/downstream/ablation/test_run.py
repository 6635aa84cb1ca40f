"""Whole ablations of a small corpus, by the command, undisturbed and killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from ml_filter.cli import main
from ml_filter.documents.manifest import read_manifest
from ml_filter.downstream.ablation.corpora import heads_of, read_filtered
from ml_filter.downstream.ablation.run import ablate_filter, read_ablation
from ml_filter.errors import ConfigError, InputError
from tests.downstream.ablation.corpora import small_config, text_of, write_filtered, write_gold

OPTIONS = ["--depth", "1", "--passes", "2", "--seeds", "2", "--control-seeds", "2", "--arm-tokens", "1500"]


def command(root: Path, output: str) -> list[str]:
    return ["ablate", str(root / "filtered"), "--gold", str(root / "gold.jsonl"), *OPTIONS, "--output", output]


@pytest.mark.slow
@pytest.mark.model
def test_killed_ablation_ends_like_an_undisturbed_one(tmp_path, capsys):
    write_filtered(tmp_path)
    write_gold(tmp_path / "gold.jsonl")
    other = tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps({"text": text_of("good", 200 + n)}) + "\n" for n in range(40)))
    extra = ["--set", "training.checkpoint_steps=5", "--set", f"corpora.other.paths=[{other}]"]
    extra += ["--set", f"targets.more.paths=[{tmp_path / 'gold.jsonl'}]"]
    killed = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, "-m", "ml_filter.cli", *command(tmp_path, str(killed)), *extra, "--workers", "2"]
    )
    scratch = killed / ".progress" / "scratch"
    while not [*scratch.glob("*/checkpoint.safetensors")]:  # a model is half trained
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (killed / "manifest.json").exists()
    for output in (killed, tmp_path / "undisturbed"):
        assert main([*command(tmp_path, str(output)), *extra, "--workers", "1"]) == 0
    assert "helps: models trained on filtered documents need" in capsys.readouterr().out

    a, b = (json.loads((tmp_path / name / "ablation.json").read_text()) for name in ("killed", "undisturbed"))
    for ablation in (a, b):
        del ablation["cpu_seconds"]
        for model in ablation["models"]:
            del model["cpu_seconds"]
    assert a == b
    assert a["verdict"] == "helps"
    assert a["left_out"] == {"filtered": 1, "rejected": 0, "other": 0}
    assert len({arm["tokens"] for arm in a["arms"]}) == 1

    manifest = read_manifest(killed, "ablation")
    assert {path.name for path in killed.iterdir()} >= {"ablation.json", "ablation.html", "models", "manifest.json"}
    assert not (killed / ".progress").exists()
    rows = pq.read_table(manifest.shard_paths()[0]).to_pylist()
    assert {row["target"] for row in rows} == {"high", "low", "more"}
    assert len(rows) == 48
    gains = {(c["arm"], c["target"]): c["gain"]["value"] for c in a["comparisons"]}
    assert gains["other", "high"] > 0 > gains["other", "low"]
    page = (killed / "ablation.html").read_text()
    assert "<h1>The filter helps</h1>" in page
    assert "2510.00866" in page
    assert "2512.24503" in page
    assert "<script" not in page


def test_filtered_corpus_without_what_was_dropped_is_an_error(tmp_path):
    config = small_config(write_gold(tmp_path / "gold.jsonl"))
    with pytest.raises(InputError, match=r"does not have what the filter dropped.*filter again with --dropped"):
        ablate_filter(write_filtered(tmp_path, dropped=False), config, tmp_path / "out")


def test_directory_that_is_not_filtered_is_an_error(tmp_path):
    with pytest.raises(InputError, match="is not a filtered corpus; make one with ml-filter filter SCORED --dropped"):
        ablate_filter(str(tmp_path), small_config(write_gold(tmp_path / "gold.jsonl")), tmp_path / "out")


def test_output_at_a_url_is_an_error(tmp_path):
    config = small_config(write_gold(tmp_path / "gold.jsonl"))
    with pytest.raises(ConfigError, match="is a URL; models are trained in a local directory"):
        ablate_filter(write_filtered(tmp_path), config, "memory://ablation")


def test_unfinished_directory_has_no_ablation(tmp_path):
    with pytest.raises(InputError, match="is not a finished ablation"):
        read_ablation(tmp_path)


def test_documents_that_no_head_scored_have_no_heads(tmp_path):
    assert heads_of(read_filtered(write_filtered(tmp_path))[0]) == []
