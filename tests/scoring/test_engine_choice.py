"""The engine is chosen once per output directory, by measuring if that is worth the time."""

import json
import os
import re
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.manifest import read_manifest
from ml_filter.errors import ConfigError
from ml_filter.heads.device import local_rank
from ml_filter.heads.kinds import encoder_directory, load_head
from ml_filter.scoring.config import ScoreConfig
from ml_filter.scoring.engine_choice import choose_engine
from ml_filter.scoring.run import score_corpus
from tests.scoring.corpora import output_digests

SMALL, LARGE = 1000, 10**9
OPENVINO = ScoreConfig(engine="openvino", dtype="float32")


@pytest.fixture
def source(documents, tmp_path):
    """Three Parquet shards of 5 documents."""
    (tmp_path / "corpus").mkdir()
    for shard in range(3):
        rows = documents[shard * 20 :][:5]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "corpus" / f"part-{shard}.parquet")
    return SourceConfig(paths=[str(tmp_path / "corpus")])


def test_openvino_gives_the_scores_of_torch(encoder_head, documents):
    texts = [row["text"] for row in documents[:12]]
    expected = load_head(encoder_head, ScoreConfig(engine="torch", dtype="float32")).score(texts)
    assert load_head(encoder_head, OPENVINO).score(texts) == pytest.approx(expected, abs=1e-3)
    assert load_head(encoder_head, ScoreConfig(engine="openvino")).score(texts) == pytest.approx(expected, abs=0.1)


def test_for_a_large_corpus_the_engines_are_measured_and_the_faster_one_is_chosen(encoder_head):
    threads = torch.get_num_threads()
    choice = choose_engine(encoder_head, ScoreConfig(device="cpu"), LARGE, threads=1)
    figures = re.fullmatch(r"on long texts openvino reads ([\d,]+) tokens/s, torch ([\d,]+)", choice.reason)
    openvino_speed, torch_speed = (int(figure.replace(",", "")) for figure in figures.groups())
    assert (choice.engine == "openvino") == (openvino_speed > 1.05 * torch_speed)
    assert torch.get_num_threads() == threads


def test_a_small_corpus_or_a_setting_makes_measuring_unnecessary(encoder_head):
    small = choose_engine(encoder_head, ScoreConfig(device="cpu"), SMALL, threads=1)
    assert (small.engine, small.reason) == ("torch", "less than 4 MiB to score, so the engines were not measured")
    fixed = choose_engine(encoder_head, OPENVINO, LARGE, threads=1)
    assert (fixed.engine, fixed.dtype, fixed.reason) == ("openvino", "float32", "set in the configuration")


def test_a_head_without_an_encoder_has_no_engine_to_choose(hashing_head):
    assert choose_engine(hashing_head, ScoreConfig(), LARGE, threads=1) is None


def test_the_manifest_records_the_choice_but_its_digest_does_not_depend_on_the_reason(encoder_head, source, tmp_path):
    manifest = score_corpus(encoder_head, source, ScoreConfig(), tmp_path / "scored")
    assert manifest.made_with.keys() == {"engine", "device", "dtype", "reason"}
    assert read_manifest(manifest.root).made_with == manifest.made_with
    other = manifest.model_copy(update={"made_with": {**manifest.made_with, "reason": "measured at another time"}})
    assert other.digest == manifest.digest


def test_a_resumed_run_uses_the_engine_that_the_first_run_chose(encoder_head, source, tmp_path):
    output = tmp_path / "scored"
    damaged = tmp_path / "corpus" / "part-1.parquet"
    good = damaged.read_bytes()
    damaged.write_bytes(good[: len(good) // 2])
    config = ScoreConfig(max_failed_shards=1)
    assert score_corpus(encoder_head, source, config, output).made_with["engine"] == "torch"
    record = output / ".progress" / "made-with.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "engine": "openvino", "dtype": "float32"}))
    damaged.write_bytes(good)
    resumed = score_corpus(encoder_head, source, config, output)
    assert (resumed.made_with["engine"], resumed.made_with["dtype"]) == ("openvino", "float32")
    expected = load_head(encoder_head, OPENVINO).score(pq.read_table(damaged)["text"].to_pylist())[:, 0]
    scores = pq.read_table(resumed.shard_paths()[1])["score"].to_pylist()
    assert scores == pytest.approx(expected.tolist(), abs=1e-6)


def test_a_machine_without_the_recorded_device_is_an_error(encoder_head, source, tmp_path):
    (tmp_path / "scored" / ".progress").mkdir(parents=True)
    choice = {"engine": "torch", "device": "cuda:77", "dtype": "bfloat16", "reason": "started on another machine"}
    (tmp_path / "scored" / ".progress" / "made-with.json").write_text(json.dumps(choice))
    with pytest.raises(ConfigError, match="'cuda:77' cannot be used"):
        score_corpus(encoder_head, source, ScoreConfig(), tmp_path / "scored")


@pytest.mark.slow
def test_two_openvino_workers_write_the_bytes_of_one_process(encoder_head, source, tmp_path):
    for workers in (1, 2):
        score_corpus(encoder_head, source, ScoreConfig(engine="openvino", workers=workers), tmp_path / str(workers))
    assert output_digests(tmp_path / "1") == output_digests(tmp_path / "2")


def test_openvino_on_another_device_than_the_cpu_is_refused(encoder_head):
    with pytest.raises(ConfigError, match="openvino runs on the CPU"):
        load_head(encoder_head, ScoreConfig(engine="openvino", device="meta"))


@pytest.mark.slow
def test_openvino_sends_no_telemetry(encoder_head, tmp_path):
    """Telemetry would leave its identifier in the home directory."""
    code = """
import sys
from ml_filter.heads.config import EngineConfig
from ml_filter.heads.kinds import encoder_directory, load_head
load_head(sys.argv[1], EngineConfig(engine="openvino"))
assert "openvino" in sys.modules
"""
    environment = {**os.environ, "HOME": str(tmp_path), "CI": "false"}
    subprocess.run([sys.executable, "-c", code, encoder_head], env=environment, check=True, capture_output=True)
    assert not (tmp_path / "intel").exists()


@pytest.mark.parametrize(
    ("config", "members"),
    [
        ({"stack": {"members": ["hashing", "encoder"]}}, ("hashing", "encoder")),
        ({"cascade": {}}, ("student", "encoder")),
    ],
)
def test_the_encoder_inside_a_stack_or_cascade_is_found(config, members, encoder_head, hashing_head, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config))
    for name, head in zip(members, (hashing_head, encoder_head), strict=True):
        (tmp_path / name).symlink_to(head)
    assert encoder_directory(tmp_path) == tmp_path / "encoder"


@pytest.mark.parametrize(
    ("environment", "rank"), [({}, 0), ({"LOCAL_RANK": "3"}, 3), ({"SLURM_LOCALID": "2"}, 2), ({"RANK": "9"}, 0)]
)
def test_the_local_rank_is_read_from_the_environment(environment, rank):
    assert local_rank(environment) == rank
