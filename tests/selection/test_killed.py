"""A selection that is killed at any point and run again gives the same bytes as an undisturbed one."""

import hashlib
import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.manifest import find_manifest
from ml_filter.documents.readers import text_id
from ml_filter.selection import select as select_module
from ml_filter.selection.measure import Measurements
from tests.kills import Killed, kill_at
from tests.selection.scored import read_rows, select

SHARDS, ROWS = 6, 20
TOP = {"token_budget": 1600, "quota": "language", "weighted": True, "seed": 3, "dropped": True}
MIN = {"min_score": 3.0}


def write_corpus(directory: Path, documents, shards: int) -> SourceConfig:
    """Shards with pieces of real texts, each with a broken line and a document without a score."""
    generator = random.Random(0)
    directory.mkdir()
    for shard in range(shards):
        lines = ["{broken"]
        for number in range(ROWS):
            text = f"{shard} {number} " + generator.choice(documents)["text"][:200]
            score = None if number == 7 else round(generator.uniform(0, 5), 1)
            language = generator.choice(["deu", "spa", "srp"])
            lines.append(json.dumps({"id": text_id(text), "text": text, "score": score, "language": language}))
        (directory / f"part-{shard:02d}.jsonl").write_text("\n".join(lines))
    return SourceConfig(paths=[str(directory)])


@pytest.fixture(scope="module")
def source(documents, tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("source") / "corpus", documents, SHARDS)


def digests(root: Path) -> dict[str, str]:
    """Digests of all files; of manifests without their dates."""
    files = [p for p in root.rglob("*") if p.is_file() and p.name not in (".lock", "manifest.json")]
    manifests = {str(p): find_manifest(str(p)) for p in (root, root / "dropped")}
    assert manifests[str(root)] is not None, "the run is not finished"
    return {
        **{str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files},
        **{Path(path).name: manifest.digest for path, manifest in manifests.items() if path != str(root) and manifest},
        "manifest": manifests[str(root)].digest,
    }


@pytest.fixture(scope="module")
def undisturbed(source, tmp_path_factory):
    """Digests of a selection of top-ranked documents, and of one by minimum score."""
    directory = tmp_path_factory.mktemp("undisturbed")
    top = select(source, directory / "top", **TOP)
    assert (top.counts["rejected"], top.counts["unscored"]) == (SHARDS, SHARDS)
    assert top.counts["kept"] > 0
    assert top.counts["dropped"] > 0
    ids = [row["id"] for manifest in (top, find_manifest(f"{top.root}/dropped")) for row in read_rows(manifest)]
    assert len(ids) == len(set(ids)) == SHARDS * ROWS
    select(source, directory / "min", **MIN)
    return {"top": digests(directory / "top"), "min": digests(directory / "min")}


@pytest.mark.parametrize(
    ("when", "name"),
    [
        ("before", r"\.progress/cut-\w+\.parquet"),
        ("after", r"\.progress/cut-\w+\.parquet"),
        ("before", r"shards/part-03-\w+\.parquet"),
        ("after", r"shards/part-03-\w+\.parquet"),
        ("after", r"\.progress/part-03-\w+\.rejects.jsonl"),
        ("after", r"\.progress/part-03-\w+\.json"),
        ("before", "quota.parquet"),
        ("after", "quota.parquet"),
        ("before", "manifest.json"),
        ("after", "manifest.json"),
    ],
)
def test_killed_at_any_commit_of_the_second_pass_it_resumes_to_the_same_bytes(
    source, undisturbed, tmp_path, when, name
):
    with kill_at(when, name), pytest.raises(Killed):
        select(source, tmp_path / "out", **TOP)
    select(source, tmp_path / "out", **TOP)
    assert digests(tmp_path / "out") == undisturbed["top"]


@pytest.mark.parametrize("name", [r"shards/part-03-\w+\.parquet", r"\.progress/part-03-\w+\.json", "manifest.json"])
def test_a_selection_by_minimum_score_resumes_and_keeps_its_finished_shards(source, undisturbed, tmp_path, name):
    output = tmp_path / "out"
    with kill_at("after", name), pytest.raises(Killed):
        select(source, output, **MIN)
    times = {path: path.stat().st_mtime_ns for path in output.glob("shards/part-0[012]*.parquet")}
    assert len(times) == 3
    select(source, output, **MIN)
    assert digests(output) == undisturbed["min"]
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_killed_in_the_first_pass_it_does_not_measure_finished_shards_again(source, undisturbed, tmp_path, monkeypatch):
    add = Measurements.add

    def die_after_the_third(self, shard, bar=None):
        add(self, shard, bar)
        if shard.name.startswith("part-02"):
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Measurements, "add", die_after_the_third)
        select(source, tmp_path / "out", **TOP)
    measured = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob(".progress/scratch/*.measured")}
    assert len(measured) == 3
    with kill_at("before", r"\.progress/cut-\w+\.parquet"), pytest.raises(Killed):
        select(source, tmp_path / "out", **TOP)
    assert {path: path.stat().st_mtime_ns for path in measured} == measured
    select(source, tmp_path / "out", **TOP)
    assert digests(tmp_path / "out") == undisturbed["top"]


def test_a_run_that_resumes_without_its_scratch_files_uses_the_same_cut(source, undisturbed, tmp_path, monkeypatch):
    with kill_at("before", r"shards/part-03-\w+\.parquet"), pytest.raises(Killed):
        select(source, tmp_path / "out", **TOP)
    for path in (tmp_path / "out").glob(".progress/scratch/*"):  # as on a machine without the first one's disk
        path.unlink()
    monkeypatch.delattr(select_module.TopRanked, "_find_cut")
    select(source, tmp_path / "out", **TOP)
    assert digests(tmp_path / "out") == undisturbed["top"]


COMMAND = [sys.executable, "-m", "ml_filter.cli", "filter"]


@pytest.mark.slow
def test_a_killed_process_leaves_an_output_that_a_rerun_completes(documents, tmp_path):
    source = write_corpus(tmp_path / "corpus", documents, 120)
    killed = tmp_path / "killed"
    call = [*COMMAND, *source.paths, "-o", str(killed), "--token-budget", "16000", "--quota", "language", "--dropped"]
    for file, count in ((".progress/scratch/*.measured", 20), ("shards/*.parquet", 20)):
        with subprocess.Popen(call, stderr=subprocess.DEVNULL) as running:
            while running.poll() is None and len(list(killed.glob(file))) < count:
                time.sleep(0.001)
            running.kill()
        assert find_manifest(str(killed)) is None, "it finished before it was killed"
    config = {"token_budget": 16_000, "quota": "language", "dropped": True}
    select(source, killed, **config)
    select(source, tmp_path / "undisturbed", **config)
    assert digests(killed) == digests(tmp_path / "undisturbed")
