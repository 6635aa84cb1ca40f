import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import load_file, save_file

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.manifest import find_manifest
from ml_filter.errors import ConfigError, InputError, TooManyFailures
from ml_filter.heads.config import TrainConfig
from ml_filter.heads.engine import load_engine
from ml_filter.heads.info import read_info
from ml_filter.heads.load import load_model
from ml_filter.heads.train import train_head
from ml_filter.scoring.config import ScoreConfig
from ml_filter.scoring.run import Rank, score_corpus, score_rank

FLOAT32 = ScoreConfig(dtype="float32")


@pytest.fixture
def head(labelled, tmp_path):
    return train_head(
        SourceConfig(paths=[str(labelled)]), TrainConfig(label_column="label", max_tokens=64), tmp_path / "head"
    )


@pytest.fixture
def corpus(documents, tmp_path) -> Path:
    """Three Parquet shards of 20 documents, with a nested column."""
    directory = tmp_path / "corpus"
    directory.mkdir()
    for shard in range(3):
        rows = [{**row, "meta": {"place": i, "tags": ["a"]}} for i, row in enumerate(documents[shard * 20 :][:20])]
        pq.write_table(pa.Table.from_pylist(rows), directory / f"part-{shard}.parquet")
    return directory


def digests(directory: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted((directory / "shards").iterdir())}


def test_scores_equal_the_plain_forward_of_each_document_alone(head, documents):
    model, tokenizer = load_model(head.directory)
    engine = load_engine(head.directory, FLOAT32)
    texts = [row["text"] for row in documents]
    alone = []
    with torch.inference_mode():
        for text in texts:
            batch = tokenizer(text, truncation=True, max_length=64, return_tensors="pt")
            alone.append(model(batch["input_ids"], batch["attention_mask"]).item())
    assert engine.score(texts)[:, 0] == pytest.approx(np.clip(alone, 0, 5), abs=1e-4)


def test_bfloat16_scores_stay_within_a_tenth(head, documents):
    texts = [row["text"] for row in documents]
    full = load_engine(head.directory, FLOAT32).score(texts)
    half = load_engine(head.directory, ScoreConfig(dtype="bfloat16")).score(texts)
    assert np.abs(full - half).max() < 0.1


def test_each_input_shard_gives_one_output_shard_with_all_columns_and_the_scores(head, corpus, tmp_path):
    manifest = score_corpus(head.directory, SourceConfig(paths=[str(corpus)]), FLOAT32, tmp_path / "scored")
    assert [shard.rows for shard in manifest.shards] == [20, 20, 20]
    assert (manifest.counts["read"], manifest.counts["scored"], manifest.counts["failed"]) == (60, 60, 0)
    before = pq.read_table(corpus / "part-1.parquet")
    after = pq.read_table(manifest.shard_paths()[1])
    assert after.column_names == ["id", "text", "source", "meta", "score", "int_score", "score_status"]
    assert after.select(before.column_names).equals(before)
    scores = np.array(after["score"].to_pylist())
    [criterion] = read_info(head.directory).criteria
    assert after["int_score"].to_pylist() == criterion.integer_scores(scores).tolist()


def test_columns_of_the_input_named_like_ours_are_kept_beside_them(head, documents, tmp_path):
    path = tmp_path / "scored-before.jsonl"
    path.write_text("".join(json.dumps({**row, "score": 4.5}) + "\n" for row in documents[:3]))
    manifest = score_corpus(head.directory, SourceConfig(paths=[str(path)]), FLOAT32, tmp_path / "scored")
    table = pq.read_table(manifest.shard_paths()[0])
    assert table["input_score"].to_pylist() == [4.5, 4.5, 4.5]
    assert table["score"].to_pylist() != [4.5, 4.5, 4.5]


@pytest.fixture
def silent_head(cheap_head, tmp_path) -> str:
    """A head whose bias is no number, so that no score is."""
    directory = shutil.copytree(cheap_head, tmp_path / "silent")
    path = directory / "model.safetensors"
    weights = load_file(path)
    save_file({**weights, "bias": np.full_like(weights["bias"], np.nan)}, path)
    return str(directory)


def test_documents_without_a_score_are_written_and_more_than_a_share_of_them_ends_the_run_as_failed(
    silent_head, corpus, tmp_path
):
    source = SourceConfig(paths=[str(corpus)])
    for _ in range(2):  # also where nothing is left to do
        with pytest.raises(TooManyFailures, match=r"60 of 60 documents got no score.*max_failed_documents=0\.01"):
            score_corpus(silent_head, source, ScoreConfig(), tmp_path / "scored")
    manifest = score_corpus(silent_head, source, ScoreConfig(max_failed_documents=1), tmp_path / "scored")
    assert (manifest.rows, manifest.counts["failed"]) == (60, 60)
    status = [row for path in manifest.shard_paths() for row in pq.read_table(path)["score_status"].to_pylist()]
    assert status == ["failed"] * 60


def test_a_rank_answers_for_its_documents_without_a_score(silent_head, corpus, tmp_path):
    source = SourceConfig(paths=[str(corpus)])
    with pytest.raises(TooManyFailures, match="20 of 20 documents got no score"):
        score_rank(silent_head, source, ScoreConfig(), tmp_path / "scored", Rank(1, 3))


def test_killed_at_any_shard_and_run_again_it_gives_the_same_bytes(head, corpus, tmp_path):
    whole = score_corpus(head.directory, SourceConfig(paths=[str(corpus)]), FLOAT32, tmp_path / "whole")
    killed = tmp_path / "killed"
    command = [sys.executable, "-m", "ml_filter.cli", "score", head.directory, str(corpus), "-o", str(killed)]
    command += ["--dtype", "float32"]
    running = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while running.poll() is None and not list(killed.glob(".progress/00000*.json")):
        time.sleep(0.005)
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    assert find_manifest(str(killed)) is None
    kept = {path: path.stat().st_mtime_ns for path in killed.glob("shards/*.parquet")}
    subprocess.run(command, check=True, capture_output=True)
    assert digests(killed) == digests(tmp_path / "whole")
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    again = find_manifest(str(killed))
    assert again is not None
    assert again.digest == whole.digest


def test_warc_jsonl_and_parquet_are_scored_together(head, corpus, shared_data, tmp_path):
    paths = [shared_data / "commoncrawl_2020-34.warc.gz", shared_data / "commoncrawl_2024-22.warc.wet.gz"]
    source = SourceConfig(paths=[str(corpus), *map(str, paths)])
    manifest = score_corpus(head.directory, source, FLOAT32, tmp_path / "scored")
    assert len(manifest.shards) == 5
    assert manifest.counts["scored"] == manifest.counts["read"] == manifest.rows


def test_three_languages_of_fineweb_2_go_through_whole(head, shared_data, tmp_path):
    rows = {"deu_Latn": 200, "spa_Latn": 600, "srp_Cyrl": 600}
    paths = [str(shared_data / f"fineweb2_{language}.jsonl") for language in rows]
    manifest = score_corpus(head.directory, SourceConfig(paths=paths), ScoreConfig(), tmp_path / "scored")
    assert [shard.rows for shard in manifest.shards] == list(rows.values())
    assert "language" in pq.read_schema(manifest.shard_paths()[0]).names


def test_a_directory_without_a_head_and_a_missing_device_are_named(head, corpus, tmp_path):
    source = SourceConfig(paths=[str(corpus)])
    with pytest.raises(InputError, match="holds no trained head"):
        score_corpus(corpus, source, FLOAT32, tmp_path / "a")
    with pytest.raises(ConfigError, match="'cuda:77' cannot be used"):
        score_corpus(head.directory, source, ScoreConfig(device="cuda:77"), tmp_path / "b")


def test_a_published_classifier_scores_a_corpus_as_it_is(corpus, tmp_path):
    from transformers import AutoTokenizer, BertForSequenceClassification

    from ml_filter.heads.config import EMBEDDED_ENCODER
    from ml_filter.heads.encoder import load_encoder
    from tests.small import small_bert

    tokenizer = load_encoder(EMBEDDED_ENCODER).tokenizer
    published = BertForSequenceClassification(small_bert(num_labels=1)).eval()
    published.save_pretrained(tmp_path / "published")
    tokenizer.save_pretrained(tmp_path / "published")
    manifest = score_corpus(tmp_path / "published", SourceConfig(paths=[str(corpus)]), FLOAT32, tmp_path / "scored")
    table = pq.read_table(manifest.shard_paths()[0])
    batch = AutoTokenizer.from_pretrained(tmp_path / "published")(
        table["text"][0].as_py(), truncation=True, max_length=64, return_tensors="pt"
    )
    with torch.inference_mode():
        alone = published(**batch).logits.item()
    assert table["score"][0].as_py() == pytest.approx(min(max(alone, 0), 5), abs=1e-5)
    assert [parent.path for parent in manifest.parents][-1].endswith("published")
