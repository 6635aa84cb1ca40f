import json

import fsspec
import pytest
from hypothesis import given
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


@given(value=st.dictionaries(st.text(), JSON))
def test_a_digest_does_not_depend_on_the_order_of_keys(value):
    assert digest_of(dict(reversed(value.items()))) == digest_of(value)
    assert digest_of(json.loads(json.dumps(value))) == digest_of(value)


def test_equal_content_has_an_equal_digest_wherever_whenever_and_by_whatever_version_it_was_made(manifest):
    other = manifest.model_copy(update={"root": "s3://there", "created_at": "1970-01-01", "code_version": "9"})
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
def test_other_content_has_another_digest(manifest, change):
    assert manifest.model_copy(update=change).digest != manifest.digest


def test_a_manifest_is_found_again_with_its_root_and_its_shards_beside_it(manifest, tmp_path):
    (tmp_path / "manifest.json").write_text(manifest.to_json())
    found = read_manifest(str(tmp_path))
    assert found.root == str(tmp_path)
    assert found.digest == manifest.digest
    assert found.rows == 3
    assert found.shard_paths() == [f"{tmp_path}/shards/a.parquet"]
    assert str(tmp_path) not in (tmp_path / "manifest.json").read_text()


def test_a_manifest_at_a_url_gives_urls(manifest):
    fsspec.filesystem("memory").pipe("/manifests/manifest.json", manifest.to_json().encode())
    assert read_manifest("memory://manifests/").shard_paths() == ["memory://manifests/shards/a.parquet"]


def test_no_manifest_means_not_complete(tmp_path):
    assert find_manifest(str(tmp_path)) is None
    assert find_manifest(str(tmp_path / "nowhere")) is None
    with pytest.raises(InputError, match=r"holds no manifest\.json: .* has not finished"):
        read_manifest(str(tmp_path))


@pytest.mark.parametrize("content", ["", "{", "[]", '{"kind": 5}', '{"shards": [{}], "kind": "x"}'])
def test_a_file_that_is_no_manifest_is_refused(tmp_path, content):
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(InputError, match="is not a manifest"):
        find_manifest(str(tmp_path))


def test_a_manifest_of_a_later_format_is_refused(tmp_path):
    (tmp_path / "manifest.json").write_text('{"kind": "documents", "format_version": 99}')
    with pytest.raises(InputError, match="has format version 99; this version reads 1"):
        find_manifest(str(tmp_path))
