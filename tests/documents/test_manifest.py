import json

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_filter.documents.manifest import Manifest, Parent, Shard, digest_of, find_manifest, read_manifest
from ml_filter.errors import InputError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.dictionaries(st.text(), inner), max_leaves=8
)


@pytest.fixture
def manifest() -> Manifest:
    shard = Shard(path="shards/a.parquet", rows=3, bytes=10, digest="d")
    return Manifest(
        kind="documents", shards=[shard], counts={"read": 3}, parents=[Parent(path="corpus", digest="p")], root="/here"
    )


@settings(max_examples=30)
@given(value=st.dictionaries(st.text(), JSON))
def test_a_digest_does_not_depend_on_the_order_of_keys(value):
    assert digest_of(dict(reversed(value.items()))) == digest_of(value)
    assert digest_of(json.loads(json.dumps(value))) == digest_of(value)


def test_the_digest_ignores_location_time_and_version(manifest):
    other = manifest.model_copy(
        update={"root": "s3://there", "created_at": "1970-01-01", "code_version": "9", "commit": "c0ffee"}
    )
    assert other.digest == manifest.digest


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "filtered"},
        {"shards": []},
        {"counts": {"read": 4}},
        {"config": {"seed": 1}},
        {"parents": [Parent(path="corpus", digest="q")]},
    ],
)
def test_different_content_has_a_different_digest(manifest, change):
    assert manifest.model_copy(update=change).digest != manifest.digest


def test_a_manifest_is_read_with_its_root_and_shard_paths(manifest, tmp_path):
    (tmp_path / "manifest.json").write_text(manifest.to_json())
    result = read_manifest(str(tmp_path))
    assert result.root == str(tmp_path)
    assert result.digest == manifest.digest
    assert result.rows == 3
    assert result.shard_paths() == [f"{tmp_path}/shards/a.parquet"]
    assert str(tmp_path) not in (tmp_path / "manifest.json").read_text()


def test_shard_paths_of_a_manifest_at_a_url_are_urls(manifest):
    fsspec.filesystem("memory").pipe("/manifests/manifest.json", manifest.to_json().encode())
    assert read_manifest("memory://manifests/").shard_paths() == ["memory://manifests/shards/a.parquet"]


def test_a_directory_without_a_manifest_is_not_complete(tmp_path):
    assert find_manifest(str(tmp_path)) is None
    assert find_manifest(str(tmp_path / "nowhere")) is None
    with pytest.raises(InputError, match=r"holds no manifest\.json: .* has not finished"):
        read_manifest(str(tmp_path))


@pytest.mark.parametrize("content", ["", "{", "[]", '{"kind": 5}', '{"shards": [{}], "kind": "x"}'])
def test_a_malformed_manifest_is_an_error(tmp_path, content):
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(InputError, match="is not a manifest"):
        find_manifest(str(tmp_path))


def test_a_manifest_of_a_later_format_is_an_error(tmp_path):
    (tmp_path / "manifest.json").write_text('{"kind": "documents", "format_version": 99}')
    with pytest.raises(InputError, match="has format version 99; this version reads 1"):
        find_manifest(str(tmp_path))
