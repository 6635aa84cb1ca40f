"""What runs the encoder is chosen once for an output: by a measurement where that pays, and kept to from then on."""

import json
import os
import re
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from ml_filter.scoring.choice import choose, find_encoder

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.manifest import read_manifest
from ml_filter.errors import ConfigError
from ml_filter.heads.config import TrainConfig
from ml_filter.heads.device import local_rank
from ml_filter.heads.engine import load_engine
from ml_filter.heads.train import train_head
from ml_filter.scoring.config import ScoreConfig
from ml_filter.scoring.run import score_corpus
from tests.scoring.corpora import content

SMALL, LARGE = 1000, 10**9
OPENVINO = ScoreConfig(engine="openvino", dtype="float32")


@pytest.fixture(scope="module")
def head(documents, tmp_path_factory):
    directory = tmp_path_factory.mktemp("choice")
    rows = [{**row, "label": min(5.0, len(row["text"]) / 4000)} for row in documents]
    (directory / "labelled.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = SourceConfig(paths=[str(directory / "labelled.jsonl")])
    return train_head(source, TrainConfig(label_column="label", max_tokens=64), directory / "head").directory


@pytest.fixture
def corpus(documents, tmp_path):
    """Three Parquet shards of 20 documents."""
    directory = tmp_path / "corpus"
    directory.mkdir()
    for shard in range(3):
        pq.write_table(pa.Table.from_pylist(documents[shard * 20 :][:20]), directory / f"part-{shard}.parquet")
    return directory


def test_openvino_gives_the_scores_of_torch(head, documents):
    texts = [row["text"] for row in documents]
    wanted = load_engine(head, ScoreConfig(engine="torch", dtype="float32")).score(texts)
    assert load_engine(head, OPENVINO).score(texts) == pytest.approx(wanted, abs=1e-3)
    assert load_engine(head, ScoreConfig(engine="openvino")).score(texts) == pytest.approx(wanted, abs=0.1)


def test_a_large_corpus_is_worth_a_measurement_whose_figures_are_the_reason(head):
    before = torch.get_num_threads()
    choice = choose(head, ScoreConfig(device="cpu"), LARGE, threads=1)
    figures = re.fullmatch(r"openvino reads ([\d,]+) tokens/s, torch ([\d,]+), of long texts", choice.reason)
    openvino, plain = (int(figure.replace(",", "")) for figure in figures.groups())
    assert (choice.engine == "openvino") == (openvino > 1.05 * plain)
    assert torch.get_num_threads() == before


def test_a_small_corpus_and_a_setting_need_no_measurement(head):
    small = choose(head, ScoreConfig(device="cpu"), SMALL, threads=1)
    assert (small.engine, small.reason) == ("torch", "less than 4 MiB to score: not worth a measurement")
    given = choose(head, OPENVINO, LARGE, threads=1)
    assert (given.engine, given.dtype, given.reason) == ("openvino", "float32", "as the settings say")


def test_a_head_without_an_encoder_leaves_nothing_to_choose(cheap_head):
    assert choose(cheap_head, ScoreConfig(), LARGE, threads=1) is None


def test_the_manifest_says_what_was_chosen_and_its_digest_does_not_depend_on_why(head, corpus, tmp_path):
    manifest = score_corpus(head, SourceConfig(paths=[str(corpus)]), ScoreConfig(), tmp_path / "scored")
    assert manifest.made_with.keys() == {"engine", "device", "dtype", "reason"}
    assert read_manifest(manifest.root).made_with == manifest.made_with
    other = manifest.model_copy(update={"made_with": {**manifest.made_with, "reason": "measured at another time"}})
    assert other.digest == manifest.digest


def test_a_run_that_goes_on_takes_what_the_first_one_chose(head, corpus, tmp_path):
    source, output = SourceConfig(paths=[str(corpus)]), tmp_path / "scored"
    broken = corpus / "part-1.parquet"
    whole = broken.read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    config = ScoreConfig(max_failed_shards=1)
    assert score_corpus(head, source, config, output).made_with["engine"] == "torch"
    chosen = output / ".progress" / "made-with.json"
    chosen.write_text(json.dumps({**json.loads(chosen.read_text()), "engine": "openvino", "dtype": "float32"}))
    broken.write_bytes(whole)
    made = score_corpus(head, source, config, output)
    assert (made.made_with["engine"], made.made_with["dtype"]) == ("openvino", "float32")
    wanted = load_engine(head, OPENVINO).score(pq.read_table(broken)["text"].to_pylist())[:, 0]
    assert pq.read_table(made.shard_paths()[1])["score"].to_pylist() == pytest.approx(wanted.tolist(), abs=1e-6)


def test_a_machine_that_lacks_what_was_chosen_says_so(head, corpus, tmp_path):
    output = tmp_path / "scored"
    (output / ".progress").mkdir(parents=True)
    chosen = {"engine": "torch", "device": "cuda:77", "dtype": "bfloat16", "reason": "begun elsewhere"}
    (output / ".progress" / "made-with.json").write_text(json.dumps(chosen))
    with pytest.raises(ConfigError, match="'cuda:77' cannot be used"):
        score_corpus(head, SourceConfig(paths=[str(corpus)]), ScoreConfig(), output)


def test_two_openvino_workers_give_the_bytes_of_one_process(head, corpus, tmp_path):
    source = SourceConfig(paths=[str(corpus)])
    for workers in (1, 2):
        config = ScoreConfig(engine="openvino", workers=workers)
        score_corpus(head, source, config, tmp_path / str(workers))
    assert content(tmp_path / "1") == content(tmp_path / "2")


def test_openvino_on_another_device_than_the_cpu_is_refused(head):
    with pytest.raises(ConfigError, match="engine openvino runs on the CPU, not on meta: add --device cpu"):
        load_engine(head, ScoreConfig(engine="openvino", device="meta"))


def test_openvino_reports_nothing_to_its_makers(head, tmp_path):
    """It would leave its identifier in the home directory, and send it."""
    code = (
        "import sys; from ml_filter.heads.engine import load_engine; from ml_filter.heads.config import EngineConfig; "
    )
    code += "load_engine(sys.argv[1], EngineConfig(engine='openvino')); assert 'openvino' in sys.modules"
    environment = {**os.environ, "HOME": str(tmp_path), "CI": "false"}
    subprocess.run([sys.executable, "-c", code, head], env=environment, check=True, capture_output=True)
    assert not (tmp_path / "intel").exists()


def test_the_encoder_of_a_stack_or_cascade_is_found(head, cheap_head, tmp_path):
    assert find_encoder(tmp_path / head) == tmp_path / head
    for name, content_ in {"stack": {"stack": {"members": ["cheap", "real"]}}, "cascade": {"cascade": {}}}.items():
        directory = tmp_path / name
        directory.mkdir()
        (directory / "config.json").write_text(json.dumps(content_))
        (directory / "cheap").symlink_to(cheap_head)
        (directory / ("real" if name == "stack" else "encoder")).symlink_to(head)
        assert find_encoder(directory) == directory / ("real" if name == "stack" else "encoder")


@pytest.mark.parametrize(
    ("environment", "rank"), [({}, 0), ({"LOCAL_RANK": "3"}, 3), ({"SLURM_LOCALID": "2"}, 2), ({"RANK": "9"}, 0)]
)
def test_a_process_knows_its_number_on_this_machine(environment, rank):
    assert local_rank(environment) == rank
