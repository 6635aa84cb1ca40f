"""Indexing: what is written, what is embedded again, and what an index notices when it is opened."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from ml_filter.documents.readers import read_tables
from ml_filter.downstream.retrieval import index as indexing
from ml_filter.downstream.retrieval import stores
from ml_filter.downstream.retrieval.config import SearchConfig
from ml_filter.downstream.retrieval.encoding import TextEncoder
from ml_filter.downstream.retrieval.index import build_index, clean, open_index
from ml_filter.downstream.retrieval.search import Searcher
from ml_filter.downstream.retrieval.stores import EdgeStore
from ml_filter.errors import ConfigError, InputError
from tests.downstream.retrieval.conftest import TEXTS, rows_of, source_of


@pytest.fixture
def embedded(monkeypatch):
    """The passages that are embedded."""
    texts: list[str] = []
    original = TextEncoder.passages

    def passages(self, batch):
        texts.extend(batch)
        return original(self, batch)

    monkeypatch.setattr(TextEncoder, "passages", passages)
    return texts


def open_and_close(directory):
    with open_index(directory):
        pass


def passages_in(manifest):
    return [row for path in manifest.shard_paths() for table in read_tables(path) for row in table.to_pylist()]


def test_passages_are_parts_of_their_parents_and_carry_the_columns_of_their_documents(corpus, config, tmp_path):
    manifest = build_index(source_of(corpus), config(), tmp_path / "index")
    rows = passages_in(manifest)
    assert manifest.counts["read"] == 4
    assert manifest.counts["passages"] == len(rows) > 4
    assert {row["parent"] for row in rows} == set(TEXTS.values())
    assert all(row["text"] in row["parent"] for row in rows)
    assert {(row["document_id"], row["url"], row["score"]) for row in rows} >= {
        ("cells", "https://example.org/cells", 3.0),
        ("rivers", "https://example.org/rivers", 2.0),
    }
    assert manifest.config["encoder"]["width"] > 0
    assert len({row["id"] for row in rows}) == len(rows)


def test_a_second_run_embeds_nothing_and_a_grown_source_only_its_new_shard(corpus, config, tmp_path, embedded):
    first = build_index(source_of(corpus), config(), tmp_path / "index")
    assert len(embedded) == first.rows
    embedded.clear()
    build_index(source_of(corpus), config(), tmp_path / "index")
    assert embedded == []
    (corpus / "c.jsonl").write_text('{"id": "new", "text": "Owls hunt mice at night."}\n')
    (corpus / "b.jsonl").write_text(rows_of(["stars"], score=1.0))
    grown = build_index(source_of(corpus), config(), tmp_path / "index")
    assert embedded == ["Owls hunt mice at night."]
    assert (grown.shards_new, grown.shards_reused) == (2, 1)
    with open_index(tmp_path / "index") as index:
        assert sum(index.store.shards().values()) == grown.rows
        found = Searcher(index, SearchConfig(mode="bm25", rerank="none", min_similarity=-1)).search("rivers and owls")
    assert {result.document_id for result in found} == {"new"}  # the rivers are gone


def test_a_store_that_is_not_that_of_the_manifest_is_noticed_and_repaired(corpus, config, tmp_path, embedded):
    manifest = build_index(source_of(corpus), config(), tmp_path / "index")
    with open_index(tmp_path / "index") as index:
        index.store.delete_shard(manifest.shards[0].digest)
        index.store.flush()
    with pytest.raises(InputError, match=r"has \d+ passages in 1 shards, not the \d+ in 2 of its manifest.*again"):
        open_and_close(tmp_path / "index")
    embedded.clear()
    build_index(source_of(corpus), config(), tmp_path / "index")
    assert len(embedded) == manifest.shards[0].rows
    shutil.rmtree(tmp_path / "index" / "qdrant")
    with pytest.raises(InputError, match="qdrant is missing; run the same ml-filter index command again"):
        open_and_close(tmp_path / "index")
    build_index(source_of(corpus), config(), tmp_path / "index")
    with open_index(tmp_path / "index") as index:
        assert sum(index.store.shards().values()) == manifest.rows


def test_a_run_that_failed_in_the_middle_embeds_only_what_is_missing(corpus, config, tmp_path, embedded, monkeypatch):
    put, batches = EdgeStore.put, []

    def put_once(self, points):
        batches.append(points)
        if len(batches) > 2:  # parents and passages of the first batch
            raise OSError("no space")
        put(self, points)

    monkeypatch.setattr(indexing, "_BATCH_ROWS", 3)
    monkeypatch.setattr(EdgeStore, "put", put_once)
    with pytest.raises(OSError, match="no space"):
        build_index(source_of(corpus), config(), tmp_path / "index")
    with pytest.raises(InputError, match=r"no manifest\.json"):
        open_and_close(tmp_path / "index")
    monkeypatch.setattr(EdgeStore, "put", put)
    embedded.clear()
    manifest = build_index(source_of(corpus), config(), tmp_path / "index")
    assert len(embedded) == manifest.rows - 3
    open_and_close(tmp_path / "index")


@pytest.mark.slow
def test_a_killed_run_is_resumed_to_the_same_index(corpus, config, tmp_path, embedded):
    rows = [rows_of(["cells", "bread", "stars", "rivers"]).replace('"id": "', f'"id": "{n}-') for n in range(20)]
    (corpus / "c.jsonl").write_text("".join(rows))
    code = (
        "import sys; from ml_filter.downstream.retrieval import index as i; i._BATCH_ROWS = 16\n"
        "from ml_filter.downstream.retrieval.config import IndexConfig; from ml_filter.documents.config import *\n"
        "put = i._put\n"
        "def noted(*args):\n    n = put(*args); print('put', flush=True); return n\n"
        "i._put = noted\n"
        f"i.build_index(SourceConfig(paths=[{str(corpus)!r}]), IndexConfig.model_validate_json(sys.argv[1]), "
        f"{str(tmp_path / 'index')!r})"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, config().model_dump_json()], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for _ in range(5):
        assert process.stdout.readline() == "put\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    resumed = build_index(source_of(corpus), config(), tmp_path / "index")
    assert 0 < len(embedded) <= resumed.rows - 2 * 16
    undisturbed = build_index(source_of(corpus), config(), tmp_path / "other")
    assert [shard.digest for shard in resumed.shards] == [shard.digest for shard in undisturbed.shards]
    ids = [row["id"] for row in passages_in(resumed)]
    with open_index(tmp_path / "index") as index, open_index(tmp_path / "other") as other:
        vectors = [[found[id_] for id_ in ids] for found in (i.store.vectors(ids) for i in (index, other))]
    np.testing.assert_allclose(*vectors, atol=1e-5)


def test_other_settings_and_other_encoders_are_refused(corpus, config, tmp_path, monkeypatch):
    build_index(source_of(corpus), config(), tmp_path / "index")
    with pytest.raises(InputError, match="different settings or input"):
        build_index(source_of(corpus), config(chunk_tokens=32), tmp_path / "index")
    monkeypatch.setattr(TextEncoder, "digest", "another")
    with pytest.raises(InputError, match=r"is not the encoder that .* was indexed with; index again"):
        open_and_close(tmp_path / "index")


def test_a_missing_extra_and_an_embedded_store_at_a_url_are_one_line(corpus, config, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"needs a local directory, not memory://x; set store \(--store\)"):
        build_index(source_of(corpus), config(), "memory://x")
    with pytest.raises(ConfigError, match=r'"klingon"; use one of arabic, .* turkish, or none'):
        build_index(source_of(corpus), config(word_language="klingon"), tmp_path / "a")
    with pytest.raises(InputError, match="--column nosuch: no document has this column; there are id, text, url"):
        build_index(source_of(corpus), config(columns=["nosuch"]), tmp_path / "nosuch")
    with pytest.raises(ConfigError, match=r"store 'localhost' is not the URL of a Qdrant server"):
        build_index(source_of(corpus), config(store="localhost"), tmp_path / "b")
    monkeypatch.setitem(sys.modules, "qdrant_edge", None)
    with pytest.raises(
        ConfigError, match="needs qdrant_edge; install the extra retrieve with `make setup EXTRAS=retrieve`"
    ):
        build_index(source_of(corpus), config(), tmp_path / "c")


def test_an_unreachable_server_is_one_line(corpus, config, tmp_path):
    with pytest.raises(
        InputError, match=r"server at http://127\.0\.0\.1:9 does not answer \(.*refused\); check --store"
    ):
        build_index(source_of(corpus), config(store="http://127.0.0.1:9"), tmp_path / "index")


LOCAL_MODE = pytest.mark.filterwarnings("ignore:Payload indexes have no effect", "ignore:Local mode")


@pytest.fixture
def qdrant(monkeypatch):
    """The client's own server: no other can be had in a test."""
    from qdrant_client import QdrantClient

    local = QdrantClient(":memory:")
    close, local.close = local.close, lambda: None
    monkeypatch.setattr(stores, "connect", lambda url, settings: local)
    yield local
    close()


@LOCAL_MODE
def test_a_server_has_the_same_points_and_results(corpus, config, tmp_path, qdrant):
    served = build_index(source_of(corpus), config(store="http://qdrant:6333"), tmp_path / "served")
    build_index(source_of(corpus), config(), tmp_path / "index")
    search = SearchConfig(limit=3, min_similarity=-1)
    with open_index(tmp_path / "served") as server, open_index(tmp_path / "index") as edge:
        assert sum(server.store.shards().values()) == served.rows
        for changes in ({}, {"fusion": "rrf"}, {"mode": "dense"}, {"mode": "bm25"}, {"rerank": "none"}):
            for where in ([], ["score>=2"], ["score=1,4"], ["document_id!=stars", "language=en,de"]):
                settings = SearchConfig.model_validate(search.model_dump() | changes | {"where": where})
                both = [Searcher(i, settings).search("How does a star shine?") for i in (server, edge)]
                assert [r.passage for r in both[0]] == [r.passage for r in both[1]], settings
                assert all(r.context == TEXTS[r.document_id] for r in both[0])
        server.store.delete_shard(served.shards[0].digest)
        assert sum(server.store.shards().values()) == served.rows - served.shards[0].rows


@LOCAL_MODE
def test_indexes_with_the_same_settings_have_their_own_collections_at_a_server(
    corpus, config, tmp_path, qdrant, monkeypatch
):
    def fail(self, points):
        raise OSError("no space")

    settings = config(store="http://qdrant:6333")
    with monkeypatch.context() as patch, pytest.raises(OSError, match="no space"):
        patch.setattr(stores.ServerStore, "put", fail)
        build_index(source_of(corpus), settings, tmp_path / "first")
    first = build_index(source_of(corpus), settings, tmp_path / "first")
    (corpus / "b.jsonl").unlink()
    second = build_index(source_of(corpus), settings, tmp_path / "second")
    assert first.config_digest == second.config_digest
    counts = {found.name: qdrant.count(found.name).count for found in qdrant.get_collections().collections}
    assert sorted(counts) == sorted(manifest.made_with["collection"] for manifest in (first, second))
    with open_index(tmp_path / "first") as index:
        assert sum(index.store.shards().values()) == first.rows > second.rows
    grown = build_index(source_of(corpus), settings, tmp_path / "first")
    assert grown.made_with == first.made_with
    assert qdrant.count(first.made_with["collection"]).count == qdrant.count(second.made_with["collection"]).count


def test_text_is_cleaned():
    assert clean("  A\u0308 b\r\nc \x00\td\u200b\n \n\n\ne  ") == "Ä b\nc d\n\ne"
