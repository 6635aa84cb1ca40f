"""A run that is killed at any instant and called again ends with the same bytes as one that was left alone."""

import hashlib
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.manifest import find_manifest
from ml_filter.documents.readers import text_id
from tests.selection.scored import read_rows, select

SHARDS = 60
CONFIG = {"token_budget": 40_000, "quota": "language", "weighted": True, "seed": 3, "dropped": True}
FILTER = f"""
import sys
from ml_filter.selection.select import filter_corpus
from ml_filter.selection.config import FilterConfig
from ml_filter.documents.config import SourceConfig
filter_corpus(SourceConfig(paths=[sys.argv[1]]), FilterConfig(**{CONFIG!r}), sys.argv[2])
"""


@pytest.fixture
def corpus(documents, tmp_path) -> Path:
    """Sixty shards of pieces of real texts, each with a broken line and a document without a score."""
    drawn = random.Random(0)
    (tmp_path / "corpus").mkdir()
    for shard in range(SHARDS):
        lines = ["{broken"]
        for number in range(50):
            text = f"{shard} {number} " + drawn.choice(documents)["text"][:400]
            score = None if number == 7 else round(drawn.uniform(0, 5), 1)
            language = drawn.choice(["deu", "spa", "srp"])
            lines.append(json.dumps({"id": text_id(text), "text": text, "score": score, "language": language}))
        (tmp_path / "corpus" / f"part-{shard:02d}.jsonl").write_text("\n".join(lines))
    return tmp_path / "corpus"


def digests(root: Path) -> dict[str, str]:
    """Of all files but locks and manifests, whose dates differ."""
    files = [p for p in root.rglob("*") if p.is_file() and p.name not in (".lock", "manifest.json")]
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def stages(killed: Path) -> dict[str, Callable[[], int]]:
    """How far a run is: shards measured, cut found, shards written."""
    return {
        "measured": lambda: len(list(killed.glob(".progress/scratch/*.measured"))),
        "cut": lambda: SHARDS * (killed / ".progress" / "cut.parquet").exists(),
        "written": lambda: len(list(killed.glob("shards/*.parquet"))),
    }


def test_killed_at_random_instants_of_both_passes_it_gives_the_same_bytes(corpus, tmp_path):
    killed, drawn = tmp_path / "killed", random.Random(1)
    untouched: dict[Path, int] = {}
    for stage, after in (("measured", 5), ("measured", 35), ("cut", 1), ("written", 8), ("written", 25)):
        running = subprocess.Popen([sys.executable, "-c", FILTER, str(corpus), str(killed)], stderr=subprocess.DEVNULL)
        while running.poll() is None and stages(killed)[stage]() < after:
            time.sleep(0.0005)
        time.sleep(drawn.uniform(0, 0.03))
        running.kill()
        running.wait()
        assert find_manifest(str(killed)) is None, "finished before it was killed"
        found = [*killed.glob(".progress/scratch/*.measured"), *killed.glob(".progress/cut.parquet")]
        assert all(path.stat().st_mtime_ns == made for path, made in untouched.items()), "measured or cut again"
        untouched |= {path: path.stat().st_mtime_ns for path in found}
    source = SourceConfig(paths=[str(corpus)])
    again, whole = select(source, killed, **CONFIG), select(source, tmp_path / "whole", **CONFIG)
    assert digests(killed) == digests(tmp_path / "whole")
    assert again.digest == whole.digest
    dropped = [find_manifest(f"{manifest.root}/dropped") for manifest in (again, whole)]
    assert dropped[0].digest == dropped[1].digest
    assert (again.counts["rejected"], again.counts["unscored"]) == (SHARDS, SHARDS)
    ids = [row["id"] for manifest in (again, dropped[0]) for row in read_rows(manifest)]
    assert len(ids) == len(set(ids)) == SHARDS * 50


def test_a_run_whose_scratch_files_are_lost_goes_on_with_the_same_cut(corpus, tmp_path):
    killed = tmp_path / "killed"
    running = subprocess.Popen([sys.executable, "-c", FILTER, str(corpus), str(killed)], stderr=subprocess.DEVNULL)
    while running.poll() is None and stages(killed)["written"]() < 10:
        time.sleep(0.0005)
    running.kill()
    running.wait()
    for path in killed.glob(".progress/scratch/*"):  # on a machine without the disk of the first
        path.unlink()
    source = SourceConfig(paths=[str(corpus)])
    assert select(source, killed, **CONFIG).digest == select(source, tmp_path / "whole", **CONFIG).digest
