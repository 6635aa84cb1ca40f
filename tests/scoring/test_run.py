"""Scoring a corpus in one process."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoTokenizer, BertForSequenceClassification

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.manifest import find_manifest
from ml_filter.errors import ConfigError, InputError, TooManyFailures
from ml_filter.heads.config import EMBEDDED_ENCODER
from ml_filter.heads.encoder import load_encoder
from ml_filter.heads.info import read_info
from ml_filter.heads.kinds import load_head
from ml_filter.heads.model import load_model
from ml_filter.scoring.config import ScoreConfig
from ml_filter.scoring.run import Rank, score_corpus, score_rank
from tests.kills import Killed, kill_at
from tests.scoring.corpora import output_digests, write_times
from tests.small import sign_head, small_bert

pytestmark = pytest.mark.model

FLOAT32 = ScoreConfig(dtype="float32")


def score(head, paths, output, config=FLOAT32):
    paths = paths if isinstance(paths, list) else [paths]
    return score_corpus(head, SourceConfig(paths=[str(path) for path in paths]), config, output)


@pytest.fixture
def nested_corpus(documents, tmp_path) -> Path:
    """Three Parquet shards of 20 documents, with a nested column."""
    directory = tmp_path / "corpus"
    directory.mkdir()
    for shard in range(3):
        rows = [{**row, "meta": {"line": i, "tags": ["a"]}} for i, row in enumerate(documents[shard * 20 :][:20])]
        pq.write_table(pa.Table.from_pylist(rows), directory / f"part-{shard}.parquet")
    return directory


# --- Scores ----------------------------------------------------------------------------------------------------------


def test_scores_in_batches_equal_the_plain_forward_of_each_document(encoder_head, documents):
    model, tokenizer = load_model(encoder_head)
    texts = [row["text"] for row in documents[:12]]
    expected = []
    with torch.inference_mode():
        for text in texts:
            batch = tokenizer(text, truncation=True, max_length=64, return_tensors="pt")
            expected.append(model(batch["input_ids"], batch["attention_mask"]).item())
    scores = load_head(encoder_head, FLOAT32).score(texts)[:, 0]
    assert scores == pytest.approx(np.clip(expected, 0, 5), abs=1e-4)


def test_bfloat16_scores_differ_by_less_than_a_tenth(encoder_head, documents):
    texts = [row["text"] for row in documents[:12]]
    full = load_head(encoder_head, FLOAT32).score(texts)
    half = load_head(encoder_head, ScoreConfig(dtype="bfloat16")).score(texts)
    assert np.abs(full - half).max() < 0.1


def test_each_input_shard_becomes_one_output_shard_with_all_columns_and_the_scores(
    hashing_head, nested_corpus, tmp_path
):
    manifest = score(hashing_head, nested_corpus, tmp_path / "scored")
    assert [shard.rows for shard in manifest.shards] == [20, 20, 20]
    assert (manifest.counts["read"], manifest.counts["scored"], manifest.counts["failed"]) == (60, 60, 0)
    before = pq.read_table(nested_corpus / "part-1.parquet")
    after = pq.read_table(manifest.shard_paths()[1])
    assert after.column_names == ["id", "text", "source", "meta", "score", "int_score", "score_status"]
    assert after.select(before.column_names).equals(before)
    scores = np.array(after["score"].to_pylist())
    [criterion] = read_info(hashing_head).criteria
    assert after["int_score"].to_pylist() == criterion.integer_scores(scores).tolist()


def test_input_columns_with_the_name_of_a_score_column_are_renamed(hashing_head, documents, tmp_path):
    path = tmp_path / "scored-before.jsonl"
    path.write_text("".join(json.dumps({**row, "score": 4.5}) + "\n" for row in documents[:3]))
    manifest = score(hashing_head, path, tmp_path / "scored")
    table = pq.read_table(manifest.shard_paths()[0])
    assert table["input_score"].to_pylist() == [4.5, 4.5, 4.5]
    assert table["score"].to_pylist() != [4.5, 4.5, 4.5]


def test_a_published_classifier_scores_a_corpus_unchanged(nested_corpus, tmp_path):
    published = BertForSequenceClassification(small_bert(num_labels=1)).eval()
    published.save_pretrained(tmp_path / "published")
    load_encoder(EMBEDDED_ENCODER).tokenizer.save_pretrained(tmp_path / "published")
    manifest = score(tmp_path / "published", nested_corpus, tmp_path / "scored")
    table = pq.read_table(manifest.shard_paths()[0])
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "published")
    batch = tokenizer(table["text"][0].as_py(), truncation=True, max_length=64, return_tensors="pt")
    with torch.inference_mode():
        logit = published(**batch).logits.item()
    assert table["score"][0].as_py() == pytest.approx(min(max(logit, 0), 5), abs=1e-5)
    assert [parent.path for parent in manifest.parents][-1].endswith("published")


# --- Sources ---------------------------------------------------------------------------------------------------------


def test_warc_and_parquet_shards_are_scored_together(hashing_head, nested_corpus, shared_data, tmp_path):
    paths = [shared_data / "commoncrawl_2020-34.warc.gz", shared_data / "commoncrawl_2024-22.warc.wet.gz"]
    manifest = score(hashing_head, [nested_corpus, *paths], tmp_path / "scored")
    assert len(manifest.shards) == 5
    assert manifest.counts["scored"] == manifest.counts["read"] == manifest.rows


def test_three_languages_of_fineweb_2_are_scored_with_their_language_column(hashing_head, shared_data, tmp_path):
    rows = {"deu_Latn": 200, "spa_Latn": 600, "srp_Cyrl": 600}
    paths = [shared_data / f"fineweb2_{language}.jsonl" for language in rows]
    manifest = score(hashing_head, paths, tmp_path / "scored")
    assert [shard.rows for shard in manifest.shards] == list(rows.values())
    assert "language" in pq.read_schema(manifest.shard_paths()[0]).names


def test_a_directory_without_a_head_and_a_missing_device_are_errors(encoder_head, nested_corpus, tmp_path):
    with pytest.raises(InputError, match="no trained head"):
        score(nested_corpus, nested_corpus, tmp_path / "a")
    with pytest.raises(ConfigError, match="'cuda:77' cannot be used"):
        score(encoder_head, nested_corpus, tmp_path / "b", ScoreConfig(device="cuda:77"))


def test_a_corpus_without_a_readable_document_is_an_error_that_says_why(hashing_head, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"body": "x"}\n{"text": ""}')
    with pytest.raises(InputError, match=r"no document could be read .*missing_text 1; name the column"):
        score(hashing_head, tmp_path / "a.jsonl", tmp_path / "out")
    assert find_manifest(str(tmp_path / "out")) is None


# --- Documents without a score ---------------------------------------------------------------------------------------


@pytest.fixture
def nan_head(hashing_head, tmp_path) -> str:
    """A head whose bias is NaN, and so is every score."""
    directory = shutil.copytree(hashing_head, tmp_path / "nan")
    weights = load_file(directory / "model.safetensors")
    save_file({**weights, "bias": np.full_like(weights["bias"], np.nan)}, directory / "model.safetensors")
    sign_head(directory)
    return str(directory)


def test_documents_without_a_score_are_written_and_too_many_of_them_fail_the_run(nan_head, nested_corpus, tmp_path):
    for _ in range(2):  # the second time nothing is left to score
        with pytest.raises(TooManyFailures, match=r"60 of 60 documents got no score.*max_failed_documents=0\.01"):
            score(nan_head, nested_corpus, tmp_path / "scored")
    manifest = score(nan_head, nested_corpus, tmp_path / "scored", ScoreConfig(dtype="float32", max_failed_documents=1))
    assert (manifest.rows, manifest.counts["failed"]) == (60, 60)
    status = [row for path in manifest.shard_paths() for row in pq.read_table(path)["score_status"].to_pylist()]
    assert status == ["failed"] * 60


def test_a_rank_fails_if_too_many_of_its_documents_get_no_score(nan_head, nested_corpus, tmp_path):
    source = SourceConfig(paths=[str(nested_corpus)])
    with pytest.raises(TooManyFailures, match="20 of 20 documents got no score"):
        score_rank(nan_head, source, ScoreConfig(), tmp_path / "scored", Rank(1, 3))


# --- Kills -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("when", "name"),
    [
        ("after", r"\.progress/run.json"),
        ("before", r"shards/part-2-\w+\.parquet"),
        ("after", r"shards/part-2-\w+\.parquet"),
        ("after", r"\.progress/part-2-\w+\.rejects.jsonl"),
        ("after", r"\.progress/part-2-\w+\.json"),
        ("after", "rejects.jsonl"),
        ("before", "manifest.json"),
        ("after", "manifest.json"),
    ],
)
def test_a_run_killed_at_any_commit_resumes_to_the_same_bytes_and_keeps_finished_shards(
    hashing_head, corpus, scored_by_one_process, tmp_path, when, name
):
    output = tmp_path / "out"
    with kill_at(when, name), pytest.raises(Killed):
        score(hashing_head, corpus, output, ScoreConfig())
    assert (find_manifest(str(output)) is None) == ((when, name) != ("after", "manifest.json"))
    finished = {path.name.removesuffix(".json") for path in output.glob(".progress/part-*.json")}
    kept = {file: time for file, time in write_times(output).items() if file[:-8] in finished} if finished else {}
    score(hashing_head, corpus, output, ScoreConfig())
    assert output_digests(output) == scored_by_one_process
    assert kept.items() <= write_times(output).items()
