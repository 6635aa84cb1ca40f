"""A MongoDB collection is scored by several processes, and again only where it is new."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ml_filter.documents.config import MongoConfig, SourceConfig
from ml_filter.documents.manifest import Manifest
from ml_filter.scoring.config import ScoreConfig
from ml_filter.scoring.run import score_corpus

pytestmark = pytest.mark.slow


def scores(manifest: Manifest) -> dict[str, float]:
    table = pa.concat_tables([pq.read_table(path).select(["id", "score"]) for path in manifest.shard_paths()])
    return dict(zip(table["id"].to_pylist(), table["score"].to_pylist(), strict=True))


def test_workers_score_ranges_of_a_collection_as_one_process_scores_a_file(
    hashing_head, documents, warehouse, tmp_path
):
    pages = warehouse.database.pages
    pages.insert_many([dict(row) for row in documents[:50]])
    (tmp_path / "all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in documents[:55]))
    expected = scores(
        score_corpus(hashing_head, SourceConfig(paths=[f"{tmp_path}/all.jsonl"]), ScoreConfig(), tmp_path / "file")
    )
    source = SourceConfig(paths=[warehouse.location("pages")], mongodb=MongoConfig(shard_rows=20))
    first = score_corpus(hashing_head, source, ScoreConfig(workers=2), tmp_path / "scored")
    assert [shard.rows for shard in first.shards] == [20, 20, 10]
    assert scores(first) == {row["id"]: expected[row["id"]] for row in documents[:50]}

    pages.insert_many([dict(row) for row in documents[50:55]])
    grown = score_corpus(hashing_head, source, ScoreConfig(), tmp_path / "scored")
    assert (grown.shards_new, grown.shards_reused) == (1, 2)
    assert scores(grown) == expected
