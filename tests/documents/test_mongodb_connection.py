"""Connections to MongoDB: users, TLS, and errors in one line without a password."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pymongo import MongoClient
from secantus import SecantusDBServer

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.manifest import Manifest
from ml_filter.documents.sources import list_shards
from ml_filter.errors import ConfigError, InputError, MlFilterError
from ml_filter.mongodb import opened_collection
from ml_filter.publishing.warehouse import export_directory
from tests.annotation.test_tls import Authority
from tests.written import write_annotations

PASSWORD = "p@ss:w/rd"


@pytest.fixture(autouse=True)
def _brief_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ML_FILTER_MONGODB_TIMEOUT_S", "0.5")


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server that asks for a password; `reader` may not write."""
    storage = str(tmp_path_factory.mktemp("guarded"))
    with (
        SecantusDBServer(storage_path=storage, cache_size="64M") as server,
        MongoClient("127.0.0.1", server.port) as client,
    ):
        client.corpus.pages.insert_one({"_id": 1, "text": "t"})
        client.admin.command("createUser", "reader", pwd=PASSWORD, roles=[{"role": "read", "db": "corpus"}])
    with SecantusDBServer(storage_path=storage, cache_size="64M", require_auth=True) as server:
        yield f"127.0.0.1:{server.port}"


def count(location: str) -> int:
    return sum(shard.rows or 0 for shard in list_shards(SourceConfig(paths=[location]))[0])


def test_user_and_password_come_from_the_settings(guarded, monkeypatch):
    location = f"mongodb://{guarded}/corpus.pages"
    with pytest.raises(InputError, match=r"no permission|authentication failed"):
        count(location)
    monkeypatch.setenv("ML_FILTER_MONGODB_USER", "reader")
    monkeypatch.setenv("ML_FILTER_MONGODB_PASSWORD", "wrong secret")
    with pytest.raises(InputError, match="authentication failed; check ML_FILTER_MONGODB_USER") as refused:
        count(location)
    assert "wrong secret" not in str(refused.value)
    monkeypatch.setenv("ML_FILTER_MONGODB_PASSWORD", PASSWORD)
    assert count(location) == 1


def test_a_user_who_may_only_read_is_told_so(guarded, monkeypatch, tmp_path):
    monkeypatch.setenv("ML_FILTER_MONGODB_USER", "reader")
    monkeypatch.setenv("ML_FILTER_MONGODB_PASSWORD", PASSWORD)
    directory = str(write_annotations(tmp_path / "annotations", [("a", 1)]))
    with pytest.raises(InputError, match=r"^mongodb://\S+: no permission .*readWrite") as refused:
        export_directory(directory, f"mongodb://{guarded}/corpus.annotations")
    assert PASSWORD not in str(refused.value)


def test_the_server_of_the_settings_is_used_where_a_location_names_none(guarded, monkeypatch):
    with pytest.raises(ConfigError, match="ML_FILTER_MONGODB_URI is not set"):
        count("mongodb:///corpus.pages")
    monkeypatch.setenv("ML_FILTER_MONGODB_URI", f"mongodb://reader:p%40ss%3Aw%2Frd@{guarded}/?authSource=admin")
    assert count("mongodb:///corpus.pages") == 1


@pytest.mark.parametrize(
    "uri",
    [
        f"mongodb://reader:{PASSWORD}@host/",
        "mongodb://reader:hunter%zz@host/",
        "mongodb://reader:hunter:2@host:port/",
        "mongo://reader:hunter@host/",
        "mongodb://reader:hunter@host/?tlsCAFile=/absent.pem&tls=true",
    ],
)
def test_a_wrong_connection_string_is_one_line_without_the_password(uri, monkeypatch):
    monkeypatch.setenv("ML_FILTER_MONGODB_URI", uri)
    with pytest.raises(MlFilterError, match="ML_FILTER_MONGODB_") as error:
        count("mongodb:///corpus.pages")
    assert not any(part in str(error.value) for part in ("p@ss", "hunter", "w/rd"))
    assert "\n" not in str(error.value)


def test_a_certificate_is_checked_against_the_authority_of_the_settings(tmp_path: Path, monkeypatch):
    authority = Authority(tmp_path)
    authority.context()
    pem = str(tmp_path / "server.pem")
    with SecantusDBServer(storage_path=":memory:", cache_size="64M", tls_cert_file=pem, tls_key_file=pem) as server:
        location = f"mongodb://127.0.0.1:{server.port}/corpus.pages"
        monkeypatch.setenv("ML_FILTER_MONGODB_URI", f"mongodb://127.0.0.1:{server.port}/?tls=true")
        with pytest.raises(InputError, match=r"TLS failed .*ML_FILTER_MONGODB_CA_FILE"):
            count("mongodb:///corpus.pages")
        monkeypatch.setenv("ML_FILTER_MONGODB_CA_FILE", str(authority.bundle))
        assert count(location) == 0
        monkeypatch.setenv("ML_FILTER_MONGODB_CA_FILE", str(tmp_path / "absent.pem"))
        with pytest.raises(ConfigError, match="ML_FILTER_MONGODB_CA_FILE"):
            count(location)


def test_nothing_connects_before_a_collection_is_used(monkeypatch):
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("connected"))
    with opened_collection("mongodb://127.0.0.1:9/db.pages") as collection:
        assert collection.full_name == "db.pages"


def test_a_source_in_a_manifest_has_its_location_and_no_credentials(guarded, monkeypatch):
    monkeypatch.setenv("ML_FILTER_MONGODB_URI", f"mongodb://reader:p%40ss%3Aw%2Frd@{guarded}/?authSource=admin")
    source = SourceConfig(paths=["mongodb:///corpus.pages"])
    shards, parents = list_shards(source)
    manifest = Manifest(kind="documents", parents=parents, config=source.model_dump(mode="json"))
    recorded = manifest.to_json() + "".join(map(repr, shards))
    assert "mongodb:///corpus.pages" in recorded
    assert not any(secret in recorded for secret in ("reader", "p%40ss", PASSWORD, guarded))
