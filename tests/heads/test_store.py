"""Heads at URLs: trained to them, fetched from them once, and never half there."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest

from ml_filter.cli import main
from ml_filter.config import Settings
from ml_filter.documents.config import SourceConfig
from ml_filter.documents.manifest import read_manifest
from ml_filter.errors import InputError
from ml_filter.evaluation.evaluate import evaluate_head
from ml_filter.heads import store
from ml_filter.heads.config import TrainConfig
from ml_filter.heads.store import fetch_head, read_head
from ml_filter.heads.train import train_head
from ml_filter.heads.trained import file_digests
from ml_filter.location import Location
from ml_filter.scoring.config import ScoreConfig
from ml_filter.scoring.run import score_corpus
from tests.kills import Killed

pytestmark = pytest.mark.slow

CONFIG = TrainConfig(kind="hashing", label_column="label")
TRAIN = ["train", "labelled.jsonl", "--kind", "hashing", "--label-column", "label"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """The heads that this test has fetched."""
    monkeypatch.setenv("ML_FILTER_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "heads"


@pytest.fixture
def labelled(tmp_path) -> Path:
    """Sixty short documents with labels."""
    path = tmp_path / "labelled.jsonl"
    rows = [{"id": f"d{n}", "text": f"{'good ' * (n % 6)}page number {n}", "label": n % 6} for n in range(60)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def source(labelled) -> SourceConfig:
    return SourceConfig(paths=[str(labelled)])


@pytest.fixture
def memory():
    """An empty file system in memory."""
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]
    yield fs
    fs.store.clear()


def entries(cache: Path) -> list[Path]:
    return [path for path in cache.iterdir() if path.is_dir()]


def test_a_head_at_a_url_has_the_files_of_one_in_a_directory_and_is_not_trained_again(source, memory, tmp_path):
    local = train_head(source, CONFIG, tmp_path / "head")
    head = train_head(source, CONFIG, "memory://heads/{digest}")
    assert head.digest == local.digest
    assert head.origin == f"memory://heads/{head.training.config_digest[:8]}"
    files = [path.removeprefix("/heads/").partition("/")[2] for path in memory.find("/heads")]
    assert sorted(files) == sorted(path.name for path in (tmp_path / "head").iterdir() if path.name != ".lock")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ml_filter.heads.train._train", lambda *arguments: pytest.fail("trained again"))
        assert train_head(source, CONFIG, head.origin) == head
    with pytest.raises(InputError, match="already has a head with other labels or settings"):
        train_head(source, CONFIG.model_copy(update={"seed": 7}), head.origin)


@pytest.mark.parametrize("kill", ["_save", "copy_here", "write_bytes"])
def test_a_killed_training_leaves_no_head_at_its_url_and_the_next_call_a_whole_one(source, memory, tmp_path, kill):
    def killed(*arguments, **settings):
        raise Killed(kill)

    owner = Location if hasattr(Location, kill) else "ml_filter.heads.train"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(owner, kill, killed) if owner is Location else patch.setattr(f"{owner}.{kill}", killed)
        train_head(source, CONFIG, "memory://heads/killed")
    with pytest.raises(InputError, match=r"memory://heads/killed has no trained head \(no training\.json\)"):
        read_head("memory://heads/killed")
    head = train_head(source, CONFIG, "memory://heads/killed")
    assert file_digests(fetch_head(head).directory) == head.training.files


def test_scores_with_a_head_at_a_url_are_those_of_one_in_a_directory(source, memory, tmp_path, cache):
    local = train_head(source, CONFIG, tmp_path / "head")
    memory.put(f"{tmp_path}/head/", "/heads/head", recursive=True)
    url = "memory://heads/head"
    names = {"local": local.origin, "url": url}
    manifests = [score_corpus(name, source, ScoreConfig(), tmp_path / key) for key, name in names.items()]
    assert manifests[0].shards == manifests[1].shards
    assert manifests[1].parents[-1].path == url
    evaluation, _ = evaluate_head(url, source, "label", tmp_path / "evaluation", compare=local)
    assert (evaluation.head, evaluation.compared_with) == (url, local.origin)
    assert len(entries(cache)) == 1


def test_the_commands_take_and_make_heads_at_urls(labelled, memory, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for line in (
        [*TRAIN, "--output", "memory://heads/{digest}"],
        ["score", "HEAD", "labelled.jsonl", "--output", "memory://heads/scored"],
        ["filter", "memory://heads/scored", "--min-score", "0", "--output", "memory://heads/filtered"],
        ["report", "memory://heads/filtered"],
        ["search", *TRAIN[1:], "--trials", "1", "--output", "memory://heads/search"],
        ["train", "labelled.jsonl", "--config", "memory://heads/search/best.yaml", "--output", "memory://heads/best"],
    ):
        head = next((f"memory:/{path.rpartition('/')[0]}" for path in memory.find("/heads") if "training" in path), "")
        assert main([head if word == "HEAD" else word for word in line]) == 0, capsys.readouterr().err
    assert memory.exists("/heads/filtered/report.html")
    assert memory.exists("/heads/search/best.yaml")
    assert {path.name for path in tmp_path.iterdir()} == {"labelled.jsonl", "cache"}


def test_a_cascade_at_a_url_scores_like_any_head(memory, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows = [{"id": str(n), "text": f"{'good ' * (n % 7)}page number {n} {'bad ' * (6 - n % 7)}"} for n in range(300)]
    labels = [{**row, "label": n % 7 * 5 / 6} for n, row in enumerate(rows)]
    Path("labelled.jsonl").write_text("".join(json.dumps(row) + "\n" for row in labels))
    settings = ["--set", "sample=300", "--set", "max_changed=0.2"]
    assert main([*TRAIN, "--output", "memory://heads/head"]) == 0
    build = ["cascade", "memory://heads/head", "labelled.jsonl", *settings, "--output", "memory://heads/cascade"]
    assert main(build) == 0, capsys.readouterr().err
    assert "in memory://heads/cascade" in capsys.readouterr().out
    assert main(["score", "memory://heads/cascade", "labelled.jsonl", "--output", "scored"]) == 0
    assert read_manifest("scored").counts["scored"] == 300
    assert {path.name for path in tmp_path.iterdir()} == {"labelled.jsonl", "cache", "scored"}


@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_what_is_damaged_in_the_cache_is_fetched_again(source, memory, cache, damage):
    head = train_head(source, CONFIG, "memory://heads/head")
    directory = fetch_head(head).directory
    weights = directory / "model.safetensors"
    content = weights.read_bytes()
    if damage == "changed":
        weights.write_bytes(content[:-1] + b"\1")
    else:
        weights.unlink()
    assert fetch_head("memory://heads/head").directory == directory
    assert weights.read_bytes() == content
    memory.rm("/heads/head/model.safetensors")
    assert fetch_head("memory://heads/head").directory == directory  # nothing is fetched twice


def test_a_head_that_changed_where_it_is_is_refused(source, memory, cache, tmp_path):
    local, head = (train_head(source, CONFIG, output) for output in (tmp_path / "head", "memory://heads/head"))
    for path in entries(cache):
        (path / "config.json").unlink()
    memory.pipe("/heads/head/config.json", b"{}")
    (tmp_path / "head" / "config.json").write_text("{}")
    for name in (head.origin, local.origin):
        with pytest.raises(InputError, match=f"{name}: config.json is not what it was when the head was trained"):
            fetch_head(name)


def test_a_file_outside_the_directory_of_a_head_is_not_written(source, memory, tmp_path):
    head = train_head(source, CONFIG, "memory://heads/head")
    training = json.loads(head.training.to_json())
    training["files"]["../../escaped.safetensors"] = "0" * 64
    memory.pipe("/heads/head/training.json", json.dumps(training).encode())
    with pytest.raises(InputError, match="is not inside the head's directory"):
        fetch_head("memory://heads/head")


def test_what_is_known_of_a_head_is_read_without_its_weights(source, memory):
    head = train_head(source, CONFIG, "memory://heads/head")
    memory.rm("/heads/head/model.safetensors")
    assert read_head("memory://heads/head") == head
    assert read_head("memory://heads/head").info.names == ["label"]


def test_a_published_classifier_at_a_url_is_fetched_once(memory, tmp_path, small_encoder, cache):
    from transformers import AutoTokenizer, BertForSequenceClassification

    from tests.small import small_bert

    BertForSequenceClassification(small_bert(num_labels=1)).save_pretrained(tmp_path / "published")
    AutoTokenizer.from_pretrained(small_encoder).save_pretrained(tmp_path / "published")
    memory.put(f"{tmp_path}/published/", "/published", recursive=True)
    memory.pipe("/published/own.py", b"raise SystemExit")
    local, fetched = fetch_head(tmp_path / "published"), fetch_head("memory://published")
    assert fetched.digest == local.digest
    assert fetched.origin == "memory://published"
    assert not list(fetched.directory.glob("*.py"))
    (fetched.directory / "config.json").write_text("{}")
    assert fetch_head("memory://published") == fetched
    assert (fetched.directory / "config.json").read_text() != "{}"
    assert len(entries(cache)) == 1


# --- Processes -------------------------------------------------------------------------------------------------------

DIE_BEFORE_THE_MARKER = """
import os, signal
from ml_filter.location import Location
def die(self, content):
    os.kill(os.getpid(), signal.SIGKILL)
Location.write_bytes = die
from ml_filter.cli import main
import sys
sys.exit(main(sys.argv[1:]))
"""
FETCH = "import sys; from ml_filter.heads.store import fetch_head; print(fetch_head(sys.argv[1]).directory)"


@pytest.mark.slow
def test_a_training_killed_between_its_files_and_their_marker_is_finished_from_scratch(
    bucket, labelled, tmp_path, cache
):
    command = [*TRAIN, "--output", f"{bucket.url}/head"]
    environment = {**os.environ, **bucket.environment}
    killed = subprocess.run(
        [sys.executable, "-c", DIE_BEFORE_THE_MARKER, *command], cwd=tmp_path, env=environment, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    uploaded = bucket.keys()
    assert "head/model.safetensors" in uploaded
    assert "head/training.json" not in uploaded
    with pytest.raises(InputError, match="has no trained head"):
        read_head(f"{bucket.url}/head")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        patch.setattr("ml_filter.heads.train._train", lambda *arguments: pytest.fail("trained again"))
        assert main(command) == 0
    head = read_head(f"{bucket.url}/head")
    assert [f"head/{name}" for name in sorted([*head.training.files, "training.json"])] == bucket.keys()
    assert {path.name for path in tmp_path.iterdir()} == {"labelled.jsonl", "cache"}


@pytest.mark.slow
def test_processes_that_need_the_same_head_at_once_share_one_copy(bucket, source, cache, tmp_path):
    head = train_head(source, CONFIG, f"{bucket.url}/head")
    for path in entries(cache):
        (path / "model.safetensors").write_bytes(b"damaged")
    command = [sys.executable, "-c", FETCH, head.origin]
    environment = {**os.environ, **bucket.environment}
    processes = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    directories = {process.communicate(timeout=120)[0].strip() for process in processes}
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert [Path(directory) for directory in directories] == entries(cache)
    assert not store.damage(entries(cache)[0], head.training.files)
    assert Settings().cache_dir == cache.parent


def test_a_published_classifier_is_recorded_once_by_several_processes(memory, monkeypatch, cache):
    memory.pipe("/published/config.json", b'{"architectures": ["BertForSequenceClassification"]}')
    recorded = []

    def slowly(directory):
        recorded.append(directory)
        time.sleep(0.1)
        return file_digests(directory)

    monkeypatch.setattr(store, "file_digests", slowly)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(fetch_head, ["memory://published"] * 4))
    assert len(set(found)) == len(recorded) == 1


@pytest.mark.parametrize("content", ["[]", "no JSON", '{"architectures": 5}', '{"architectures": []}'])
def test_a_directory_whose_config_is_of_something_else_is_one_line(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(InputError, match=r"is not a JSON object|is not valid JSON|has no trained head"):
        store.find_head(tmp_path)
