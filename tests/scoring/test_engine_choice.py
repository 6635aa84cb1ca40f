"""The engine is chosen once per output directory, by measuring if that is worth the time."""

import json
import re
import time
from collections import Counter
from dataclasses import replace
from itertools import product

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.manifest import read_manifest
from ml_filter.documents.sources import list_shards
from ml_filter.errors import ConfigError
from ml_filter.heads import device
from ml_filter.heads.device import local_rank
from ml_filter.heads.kinds import encoder as encoder_module
from ml_filter.heads.kinds import encoder_directory, load_head
from ml_filter.heads.openvino import OpenVinoModel
from ml_filter.scoring import engine_choice
from ml_filter.scoring.config import ScoreConfig
from ml_filter.scoring.engine_choice import Candidate, choose_engine
from ml_filter.scoring.run import score_corpus
from tests.scoring.corpora import output_digests

pytestmark = pytest.mark.model

SMALL, LARGE = 1000, 10**9
FAST, SLOW = Candidate("torch", "float32"), Candidate("openvino", "float32")
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


def shards_of(source, size=LARGE):
    """The shards of a source, as if they had this size together."""
    shards, _ = list_shards(source)
    return [replace(shard, size=size // len(shards), rows=size // 1000 // len(shards)) for shard in shards]


def choose(head, source, size=LARGE, **settings):
    return choose_engine(head, ScoreConfig(device="cpu", **settings), source, shards_of(source, size), threads=1)


def test_for_a_large_corpus_engines_and_number_types_are_timed_and_the_fastest_is_chosen(
    encoder_head, source, monkeypatch
):
    monkeypatch.setattr(engine_choice, "multiplies_bfloat16", lambda device: True)
    threads = torch.get_num_threads()
    choice = choose(encoder_head, source)
    assert re.match(r"it reads [\d,]+ tokens/s of this corpus, ", choice.reason)
    others = re.findall(r"(\w+) (\w+) takes ([\d.]+) times as long", choice.reason)
    measured = {(engine, dtype) for engine, dtype, _ in others} | {(choice.engine, choice.dtype)}
    assert measured == set(product(("torch", "openvino"), ("float32", "bfloat16")))
    assert min(float(ratio) for *_, ratio in others) >= 0.95
    assert torch.get_num_threads() == threads


def test_only_what_the_settings_leave_open_is_timed(encoder_head, source):
    assert "bfloat16" not in choose(encoder_head, source, dtype="float32").reason
    assert "torch" not in choose(encoder_head, source, engine="openvino").reason
    fixed = choose(encoder_head, source, engine="openvino", dtype="float32")
    assert (fixed.engine, fixed.dtype, fixed.reason) == ("openvino", "float32", "set in the configuration")


def test_a_corpus_is_not_timed_if_that_costs_more_than_it_can_save(encoder_head, source):
    small = choose(encoder_head, source, SMALL)
    assert (small.engine, small.reason) == ("torch", "less than 4 MiB to score, so the engines were not timed")
    soon_scored = choose(encoder_head, source, 5 * 2**20)
    assert soon_scored.engine == "torch"
    assert re.search(r"timing openvino .* could cost more than it saves: scoring takes about \d+ s", soon_scored.reason)


def test_a_corpus_of_which_nothing_can_be_read_is_not_timed(encoder_head, source, tmp_path):
    unreadable = source.model_copy(update={"text_column": "body"})
    (tmp_path / "corpus" / "part-0.parquet").write_bytes(b"no Parquet")
    blank = tmp_path / "blank.jsonl"
    blank.write_text('{"text": " "}\n{"text": null}\n')
    for corpus in (unreadable, SourceConfig(paths=[str(blank)])):
        assert choose(encoder_head, corpus).reason == "no document could be read to time the engines"


def test_an_engine_that_fails_its_self_test_is_not_chosen(encoder_head, source, monkeypatch):
    class Broken(OpenVinoModel):
        def __call__(self, input_ids, attention_mask):
            return torch.full((len(input_ids), 1), torch.nan)

    monkeypatch.setattr(encoder_module, "OpenVinoModel", Broken)
    choice = choose(encoder_head, source, dtype="float32")
    assert choice.engine == "torch"
    assert "scores of openvino on cpu in torch.float32 differ from a plain float32 forward pass" in choice.reason


def test_a_clearly_slower_candidate_is_stopped_after_its_first_batch(encoder_head, documents):
    head = load_head(encoder_head, ScoreConfig(device="cpu", dtype="float32", batch_tokens=1024))
    timings, calls = engine_choice._Timings([row["text"] for row in documents[:128]]), Counter()
    for candidate, seconds in ((FAST, 0.002), (SLOW, 0.02)):

        def forward(ids, mask, candidate=candidate, seconds=seconds):
            calls[candidate] += 1
            end = time.process_time() + seconds
            while time.process_time() < end:
                pass

        head.forward = forward
        timings.add(candidate, head)
    assert timings.best == FAST
    assert (calls[FAST], calls[SLOW]) == (8, 2)


@pytest.mark.parametrize(("speedup", "dtype"), [(0.4, torch.float32), (2.8, torch.bfloat16)])
def test_the_number_type_follows_the_measured_speed_and_not_the_instructions(speedup, dtype, monkeypatch):
    monkeypatch.setattr(device, "multiplies_bfloat16", lambda device: True)
    monkeypatch.setattr(device, "_bfloat16_speedup", lambda: speedup)
    assert device.choose_dtype("auto", torch.device("cpu")) == dtype
    assert device.choose_dtype("bfloat16", torch.device("cpu")) == torch.bfloat16


def test_the_speed_of_matrix_products_is_measured_without_changing_the_number_of_threads():
    threads = torch.get_num_threads()
    assert 0.01 < device._bfloat16_speedup.__wrapped__() < 100
    assert torch.get_num_threads() == threads


def test_a_head_without_an_encoder_has_no_engine_to_choose(hashing_head, source):
    assert choose(hashing_head, source) is None


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
def test_two_openvino_workers_write_the_bytes_of_one_process_and_send_no_telemetry(
    encoder_head, source, tmp_path, monkeypatch
):
    """Telemetry would leave its identifier in the home directory."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CI", "false")
    (tmp_path / "home").mkdir()
    for workers in (1, 2):
        score_corpus(encoder_head, source, ScoreConfig(engine="openvino", workers=workers), tmp_path / str(workers))
    assert output_digests(tmp_path / "1") == output_digests(tmp_path / "2")
    assert not (tmp_path / "home" / "intel").exists()


def test_openvino_on_another_device_than_the_cpu_is_refused(encoder_head):
    with pytest.raises(ConfigError, match="openvino runs on the CPU"):
        load_head(encoder_head, ScoreConfig(engine="openvino", device="meta"))


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
