import tracemalloc

import fsspec
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_filter.documents.readers import text_id
from tests.documents.readers.reading import compress, lines, read_all, varied_rows


@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
def test_jsonl_is_read_plain_and_compressed(read, tmp_path, ending):
    path = tmp_path / f"a.jsonl{ending}"
    path.write_bytes(compress(lines({"id": 7, "text": "one", "url": "u", "n": 1}, {"text": "zwei ß"}), ending))
    assert read(path).rows == [
        {"id": "7", "text": "one", "url": "u", "n": 1},
        {"id": text_id("zwei ß"), "text": "zwei ß", "url": None, "n": None},
    ]


@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
def test_each_bad_line_is_one_reject_and_the_others_are_read(read, tmp_path, ending):
    bad = {
        "invalid_json": [b'{"text": "cut of', b"[1, 2]", b"null", b'{"text": "a", "n": ' + b"1" * 5000 + b"}"],
        "invalid_utf8": [b'{"text": "\xff\xfe"}', b'{"text": "\\ud800"}', b'{"text": "a", "url": "\\uDC00"}'],
        "missing_text": [b'{"text": null}', b'{"body": "a"}', b'{"text": 5}'],
        "empty_text": [b'{"text": ""}', b'{"text": " \\n\\t"}'],
    }
    content, expected = [b'{"text": "first"}'], []
    for reason, group in bad.items():
        for line in group:
            content.append(line)
            expected.append((f"line {len(content)}", reason))
    content += [b"", b'{"text": "last \\ud83d\\ude00"}']
    path = tmp_path / f"a.jsonl{ending}"
    path.write_bytes(compress(b"\n".join(content), ending))
    result = read(path)
    assert result.texts == ["first", "last 😀"]
    assert result.locations == expected
    assert {reject["source"] for reject in result.rejects} == {str(path)}


def test_a_byte_order_mark_is_not_part_of_the_first_line(read, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + lines({"text": "one"}))
    assert read(path).texts == ["one"]


def test_a_document_of_50_mb_is_rejected_unless_the_limit_allows_it(read, tmp_path):
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(zstandard.compress(lines({"text": "before"}, {"text": "x" * 50_000_000}, {"text": "after"})))
    assert read(path).texts == ["before", "after"]
    assert read(path).reasons == ["text_too_long"]
    assert [len(text) for text in read(path, max_text_bytes=50_000_000).texts] == [6, 50_000_000, 5]


def test_a_giant_line_is_skipped_without_holding_it_in_memory(read, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines({"text": "before"}, {"text": "x" * 50_000_000}, {"text": "after"}))
    tracemalloc.start()
    result = read(path, max_text_bytes=1000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert result.texts == ["before", "after"]
    assert result.locations == [("line 2", "text_too_long")]
    assert peak < 10_000_000


def test_the_limit_counts_bytes_not_characters(read, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines({"text": "ß" * 10}, {"text": "s" * 10}))
    assert read(path, max_text_bytes=19).texts == ["s" * 10]
    assert read(path, max_text_bytes=20).texts == ["ß" * 10, "s" * 10]


@pytest.mark.parametrize("ending", [".gz", ".zst"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_readable_lines_of_a_truncated_archive_are_read(read, tmp_path, ending, share):
    rows = varied_rows(20_000)
    whole = compress(lines(*rows), ending)
    path = tmp_path / f"a.jsonl{ending}"
    path.write_bytes(whole[: int(len(whole) * share)])
    result = read(path)
    assert result.reasons == ["truncated"]
    assert abs(len(result.rows) / len(rows) - share) < 0.2
    assert result.rows == rows[: len(result.rows)]


@pytest.mark.parametrize("ending", [".gz", ".zst"])
@settings(max_examples=40, deadline=None)
@given(cut=st.floats(0, 1, exclude_min=True, exclude_max=True))
def test_an_archive_truncated_anywhere_is_one_reject(log, ending, cut):
    rows = varied_rows(50)
    whole = compress(lines(*rows), ending)
    url = f"memory://cut/a.jsonl{ending}"
    with fsspec.open(url, "wb") as file:
        file.write(whole[: max(1, int(len(whole) * cut))])
    result = read_all(log, url)
    assert result.reasons == ["truncated"]
    assert result.rows == rows[: len(result.rows)]


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_all_members_of_an_archive_are_read(read, tmp_path, ending):
    path = tmp_path / f"a.jsonl{ending}"
    path.write_bytes(compress(lines({"text": "one"}), ending) + compress(lines({"text": "two"}), ending))
    assert (read(path).texts, read(path).reasons) == (["one", "two"], [])
