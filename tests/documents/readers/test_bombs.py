"""Small files that become large ones are rejects, and memory and disk stay flat while that is found out."""

import bz2
import gzip
import lzma
import tracemalloc

import pytest
import zstandard

from tests.documents.readers.reading import lines

pytestmark = pytest.mark.slow

ROW = {"id": "a", "text": "one"}
COMPRESS = {"gz": gzip.compress, "zst": zstandard.compress, "xz": lzma.compress, "bz2": bz2.compress}
START = {"parquet": b"PAR1", "warc": b"WARC/1.0\r\nWARC-Type: response\r\nContent-Length: 9999999999\r\n\r\n"}


@pytest.mark.parametrize(
    "name", ["a.jsonl.gz", "a.jsonl.zst", "a.jsonl.xz", "a.jsonl.bz2", "a.parquet.bz2", "a.warc.zst"]
)
def test_a_decompression_bomb_is_one_reject(read, tmp_path, name):
    compress = COMPRESS[name.rpartition(".")[2]]
    start = START.get(name.split(".")[1], lines(ROW))
    (tmp_path / name).write_bytes(compress(start) + compress(b" " * 2**25) * 300)  # 10 GB
    result = read(tmp_path / name)
    assert result.rows == ([ROW] if ".jsonl" in name else [])
    assert len(result.rejects) <= 2  # of a WARC, also the record that it is in
    assert "become more than" in result.rejects[-1]["detail"]


@pytest.mark.parametrize("compression", ["zst", "bz2"])
def test_a_few_bytes_that_become_gigabytes_do_not_fill_the_memory(read, tmp_path, compression):
    path = tmp_path / f"a.jsonl.{compression}"
    path.write_bytes(COMPRESS[compression](b" " * 2**29))
    tracemalloc.start()
    try:
        assert read(path).reasons == ["unreadable"]
        assert tracemalloc.get_traced_memory()[1] < 150e6
    finally:
        tracemalloc.stop()


def test_repetitive_text_is_no_bomb(read, tmp_path):
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(zstandard.compress(lines({**ROW, "text": "one" * 3000}) * 1000))
    result = read(path)
    assert (len(result.texts), result.rejects) == (1000, [])
