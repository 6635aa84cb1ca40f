"""Documents and manifests from elsewhere: no address in them is asked, and no path leads out of their directory."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ml_filter.documents.extraction import EXTRACTORS, main_text
from ml_filter.documents.manifest import read_manifest
from tests.documents.readers.reading import lines, read_all

PAGE = """<?xml version="1.0"?>
<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0 Strict//EN" "{url}/dtd" [
<!ENTITY web SYSTEM "{url}/entity"> <!ENTITY file SYSTEM "file://{secret}"> <!ENTITY % p SYSTEM "{url}/parameter"> %p;
<!ENTITY a "aaaaaaaaaa"> <!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;"> <!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;">]>
<html xmlns:xi="http://www.w3.org/2001/XInclude"><head><base href="{url}/base/">
<meta http-equiv="refresh" content="0; url={url}/refresh"><link rel="stylesheet" href="{url}/style.css">
<script src="{url}/script.js"></script></head><body><article><h1>The cell</h1>
<xi:include href="file://{secret}" parse="text"/><img src="{url}/image.png"/><iframe src="{url}/frame"></iframe>
<p>The cell is the basic unit of life, and its nucleus holds the DNA that directs the cell: &web; &file; &c;</p>
<p>Plants make sugar from light, water and air, and release the oxygen that animals breathe in. What they do not need
at once is stored in their roots, from which it comes back in the spring, when the new leaves are made of it.</p>
</article></body></html>
"""


@pytest.fixture
def asked() -> Iterator[list[str]]:
    """The paths that were requested from a web server, whose address is the first item."""
    paths: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        paths.append(f"http://127.0.0.1:{server.server_port}")
        yield paths
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("extractor", EXTRACTORS)
def test_what_a_page_refers_to_is_not_loaded(asked, extractor, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("hunter2")
    text = main_text(PAGE.format(url=asked[0], secret=secret), extractor, 10)
    assert "Plants make sugar" in text
    assert "hunter2" not in text
    assert len(text) < 2000
    assert asked[1:] == []


def test_addresses_in_columns_are_not_asked(asked, tmp_path):
    url = f"{asked[0]}/page"
    (tmp_path / "a.jsonl").write_bytes(
        lines({"id": url, "text": url, "url": url, "image": {"path": url, "bytes": None}})
    )
    assert read_all(tmp_path / "rejects", tmp_path / "a.jsonl").texts == [url]
    assert asked[1:] == []


def test_images_that_a_data_set_names_by_url_are_not_loaded(asked, tmp_path):
    from ml_filter.documents.config import SourceConfig
    from ml_filter.documents.readers.base import InputShard
    from ml_filter.documents.readers.hub import read_records

    image = {"bytes": None, "path": f"{asked[0]}/image.png"}
    pq.write_table(pa.table({"text": ["a cell"], "image": [image]}), tmp_path / "train.parquet")
    (tmp_path / "README.md").write_text(
        "---\ndataset_info:\n  features:\n  - name: text\n    dtype: string\n  - name: image\n    dtype: image\n---\n"
    )
    rows = list(read_records(InputShard(f"hf://datasets/{tmp_path}", "hub", "name"), SourceConfig()))
    assert rows == [("row 0", {"text": "a cell", "image": image})]
    assert asked[1:] == []


@pytest.mark.parametrize(
    "path", ["../other/a.parquet", "/etc/passwd", "shards/../../a.parquet", "s3://other/a.parquet"]
)
def test_a_manifest_cannot_name_files_outside_its_directory(tmp_path, path):
    from ml_filter.errors import InputError

    shard = {"path": path, "rows": 1, "bytes": 1, "digest": "d"}
    (tmp_path / "manifest.json").write_text(json.dumps({"kind": "documents", "shards": [shard]}))
    with pytest.raises(InputError, match=r"manifest\.json is not a manifest: .*is not a path inside the directory"):
        read_manifest(tmp_path)
