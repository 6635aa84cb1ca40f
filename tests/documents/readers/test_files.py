"""What a file contains goes before what its name says."""

import bz2
import gzip
import io
import lzma
import struct

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from tests.documents.readers.reading import lines, varied_rows

ROWS = [{"id": "a", "text": "one"}, {"id": "b", "text": "zwei ß"}]


def lz4(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "lz4") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


def parquet(rows: list[dict]) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), file)
    return file.getvalue()


COMPRESS = {
    "gz": gzip.compress,
    "zst": zstandard.compress,
    "xz": lzma.compress,
    "bz2": bz2.compress,
    "lz4": lz4,
}


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("name", ["a.jsonl.{}", "a.JL.{}", "a.jsonl", "a.ndjson.zst", "a.json.gz"])
def test_any_compression_is_read_whatever_the_name_says(read, tmp_path, compression, name):
    path = tmp_path / name.format(compression.upper())
    path.write_bytes(COMPRESS[compression](lines(*ROWS)))
    assert read(path).rows == ROWS


@pytest.mark.slow
@pytest.mark.parametrize("compression", COMPRESS)
def test_rows_before_the_end_of_a_file_that_is_cut_off_are_read(read, tmp_path, compression):
    rows = varied_rows(20_000)
    whole = COMPRESS[compression](lines(*rows))
    path = tmp_path / f"a.jsonl.{compression}"
    path.write_bytes(whole[: len(whole) // 2])
    result = read(path)
    assert result.reasons == ["truncated"]
    assert result.rows == rows[: len(result.rows)]
    assert compression == "xz" or len(result.rows) > 5000


@pytest.mark.parametrize("compression", ["gz", "zst", "xz", "bz2"])
def test_garbage_after_the_last_member_is_one_reject(read, tmp_path, compression):
    path = tmp_path / f"a.jsonl.{compression}"
    path.write_bytes(COMPRESS[compression](lines(*ROWS)) + b"garbage")
    result = read(path)
    assert (result.rows, result.reasons) == (ROWS, ["unreadable"])


def test_zeros_after_the_last_gzip_member_are_padding(read, tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines(*ROWS)) + b"\0" * 100)
    assert (read(tmp_path / "a.jsonl.gz").rows, read(tmp_path / "a.jsonl.gz").rejects) == (ROWS, [])


def test_zstandard_with_a_long_window_and_skippable_frames_is_read(read, tmp_path):
    parameters = zstandard.ZstdCompressionParameters(window_log=30, enable_ldm=True)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    frame = compressor.compress(lines(*ROWS)) + compressor.flush()
    (tmp_path / "a.jsonl.zst").write_bytes(struct.pack("<II", 0x184D2A50, 3) + b"any" + frame)
    assert read(tmp_path / "a.jsonl.zst").rows == ROWS


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
@pytest.mark.parametrize(
    "encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"]
)
def test_all_encodings_of_unicode_are_read(read, tmp_path, ending, encoding):
    text = lines(*ROWS).decode() if ending == "jsonl" else "id,text\na,one\nb,zwei ß\n"
    path = tmp_path / f"a.{ending}"
    path.write_bytes(text.encode(encoding))
    assert read(path).rows == ROWS


def test_a_character_that_is_cut_off_rejects_only_its_row(read, tmp_path):
    content = lines({"text": "one"}, {"text": "two"}).decode().encode("utf-16")
    (tmp_path / "a.jsonl").write_bytes(content[:-1])
    assert read(tmp_path / "a.jsonl").texts == ["one", "two"] or read(tmp_path / "a.jsonl").rejects
    middle = content.index("two".encode("utf-16-le"))
    (tmp_path / "a.jsonl").write_bytes(content[:middle] + b"\x00\xd8" + content[middle + 2 :])
    result = read(tmp_path / "a.jsonl")
    assert (result.texts, result.reasons) == (["one"], ["invalid_utf8"])


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.warc", "a", "a.parquet.gz"])
def test_parquet_of_another_name_is_parquet(read, tmp_path, name):
    content = parquet(ROWS)
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert read(tmp_path / name).rows == ROWS


def test_json_lines_of_another_name_are_json_lines(read, tmp_path):
    for name in ("a.csv", "a.parquet", "a.txt", "a"):
        (tmp_path / name).write_bytes(lines(*ROWS))
        assert read(tmp_path / name).rows == ROWS


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"PK\x03\x04 more", "an archive of files; unpack it"),
        (b"PAR" + b"E" + b" " * 20, "encrypted Parquet"),
        (b"<!DOCTYPE html><html>error</html>", "an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer; fetch the file with `git lfs pull`"),
        (b"\x80\x04\x95 more", "a Python pickle"),
    ],
)
@pytest.mark.parametrize("name", ["a.jsonl", "b.parquet", "c.csv", "d.arrow"])
def test_what_is_not_read_is_said(read, tmp_path, content, what, name):
    (tmp_path / name).write_bytes(content)
    result = read(tmp_path / name)
    assert result.rows == []
    [reject] = result.rejects
    assert reject["reason"] == "unreadable"
    assert what in reject["detail"]
