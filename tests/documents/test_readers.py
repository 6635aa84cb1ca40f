import csv
import gzip
import hashlib
import io
import json
import tracemalloc
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.readers import InputShard, read_shard, text_id
from ml_filter.documents.readers.installed import fingerprint, read_installed
from ml_filter.documents.rejects import RejectsLog
from ml_filter.documents.sources import list_shards
from ml_filter.documents.tables import concat_tables
from ml_filter.errors import InputError


class Read(NamedTuple):
    rows: list[dict]
    rejects: list[dict]
    table: pa.Table | None

    @property
    def texts(self) -> list[str]:
        return [row["text"] for row in self.rows]

    @property
    def reasons(self) -> list[str]:
        return [reject["reason"] for reject in self.rejects]


def read_all(log: Path, *paths, shards: list[InputShard] | None = None, **options) -> Read:
    source = SourceConfig(paths=[str(path) for path in paths] or ["installed:"], **options)
    with RejectsLog(log) as rejects:
        tables = [t for shard in shards or list_shards(source)[0] for t in read_shard(shard, source, rejects)]
    table = concat_tables(tables) if tables else None
    rejected = [json.loads(line) for line in log.read_bytes().splitlines()]
    return Read([] if table is None else table.to_pylist(), rejected, table)


@pytest.fixture
def read(tmp_path_factory):
    log = tmp_path_factory.mktemp("log") / "rejects.jsonl"
    return lambda *paths, **options: read_all(log, *paths, **options)


@pytest.fixture(scope="module")
def log(tmp_path_factory) -> Path:
    """For property tests, which one fixture serves many times."""
    return tmp_path_factory.mktemp("log") / "rejects.jsonl"


def lines(*rows: dict) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def varied_rows(count: int) -> list[dict]:
    """Rows that do not compress away: so that a cut archive still holds whole lines before the cut."""
    return [{"id": str(i), "text": hashlib.sha512(str(i).encode()).hexdigest()} for i in range(count)]


def compress(content: bytes, ending: str) -> bytes:
    return {"": lambda c: c, ".gz": gzip.compress, ".zst": zstandard.compress}[ending](content)


# --- JSON lines ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
def test_jsonl_is_read_plain_and_compressed(read, tmp_path, ending):
    path = tmp_path / f"a.jsonl{ending}"
    path.write_bytes(compress(lines({"id": 7, "text": "one", "url": "u", "n": 1}, {"text": "zwei ß"}), ending))
    assert read(path).rows == [
        {"id": "7", "text": "one", "url": "u", "n": 1},
        {"id": text_id("zwei ß"), "text": "zwei ß", "url": None, "n": None},
    ]


@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
def test_each_bad_line_is_one_reject_with_its_line_number_and_the_others_are_read(read, tmp_path, ending):
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
    got = read(path)
    assert got.texts == ["first", "last 😀"]
    assert [(reject["place"], reject["reason"]) for reject in got.rejects] == expected
    assert {reject["source"] for reject in got.rejects} == {str(path)}


@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_csv_is_read_with_its_values_as_they_stand_there(read, tmp_path, separator, ending):
    rows = [["id", "text", "n"], ["007", 'two\nlines, "quoted"; one\ttab', "1.50"], ["", "zwei ß", ""]]
    content = io.StringIO(newline="")
    csv.writer(content, delimiter=separator).writerows(rows)
    path = tmp_path / f"a.csv{ending}"
    path.write_bytes(compress(content.getvalue().encode(), ending))
    assert read(path).rows == [
        {"id": "007", "text": 'two\nlines, "quoted"; one\ttab', "n": "1.50"},
        {"id": text_id("zwei ß"), "text": "zwei ß", "n": None},
    ]
    assert read(path, id_column="n").rows[0]["id"] == "1.50"


def test_each_bad_row_of_csv_is_one_reject_with_its_line_and_the_others_are_read(read, tmp_path):
    path = tmp_path / "a.tsv"
    path.write_bytes(b'text\tn\na\t1\nb\nc\t1\t2\n"d" e\t1\n\n\xff\t1\n\t1\n"f\ng"\t1\nh\t2\n"i\t3\nj')
    got = read(path)
    assert got.texts == ["a", "f\ng", "h"]
    assert [(reject["place"], reject["reason"]) for reject in got.rejects] == [
        ("line 3", "invalid_csv"),
        ("line 4", "invalid_csv"),
        ("line 5", "invalid_csv"),
        ("line 7", "invalid_utf8"),
        ("line 8", "missing_text"),
        ("line 12", "invalid_csv"),
    ]


def test_csv_without_the_column_of_the_text_is_an_error_that_names_those_it_has(read, tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("id,body\n1,one\n")
    with pytest.raises(InputError, match=r"a\.csv has no column 'text'; it has id, body"):
        read(path)
    assert read(path, text_column="body").texts == ["one"]


def test_a_byte_order_mark_is_no_part_of_the_first_line(read, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + lines({"text": "one"}))
    assert read(path).texts == ["one"]


def test_a_document_of_50_mb_is_rejected_by_default_and_read_where_the_limit_allows_it(read, tmp_path):
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(zstandard.compress(lines({"text": "before"}, {"text": "x" * 50_000_000}, {"text": "after"})))
    assert read(path).texts == ["before", "after"]
    assert read(path).reasons == ["text_too_long"]
    assert [len(text) for text in read(path, max_text_bytes=50_000_000).texts] == [6, 50_000_000, 5]


def test_a_giant_line_is_skipped_without_being_held_in_memory(read, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines({"text": "before"}, {"text": "x" * 50_000_000}, {"text": "after"}))
    tracemalloc.start()
    got = read(path, max_text_bytes=1000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert got.texts == ["before", "after"]
    assert [(r["place"], r["reason"]) for r in got.rejects] == [("line 2", "text_too_long")]
    assert peak < 10_000_000


def test_the_limit_counts_bytes_not_characters(read, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines({"text": "ß" * 10}, {"text": "s" * 10}))
    assert read(path, max_text_bytes=19).texts == ["s" * 10]
    assert read(path, max_text_bytes=20).texts == ["ß" * 10, "s" * 10]


@pytest.mark.parametrize("ending", [".gz", ".zst"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_truncated_archive_gives_its_readable_lines_and_one_reject(read, tmp_path, ending, share):
    rows = varied_rows(20_000)
    whole = compress(lines(*rows), ending)
    path = tmp_path / f"a.jsonl{ending}"
    path.write_bytes(whole[: int(len(whole) * share)])
    got = read(path)
    assert got.reasons == ["truncated"]
    assert abs(len(got.rows) / len(rows) - share) < 0.2
    assert got.rows == rows[: len(got.rows)]


@pytest.mark.parametrize("ending", [".gz", ".zst"])
@settings(max_examples=40, deadline=None)
@given(cut=st.floats(0, 1, exclude_min=True, exclude_max=True))
def test_wherever_an_archive_is_cut_there_is_exactly_one_truncated_reject(log, ending, cut):
    rows = varied_rows(50)
    whole = compress(lines(*rows), ending)
    url = f"memory://cut/a.jsonl{ending}"
    with fsspec.open(url, "wb") as file:
        file.write(whole[: max(1, int(len(whole) * cut))])
    got = read_all(log, url)
    assert got.reasons == ["truncated"]
    assert got.rows == rows[: len(got.rows)]


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_archives_of_several_members_are_read_to_the_end(read, tmp_path, ending):
    path = tmp_path / f"a.jsonl{ending}"
    path.write_bytes(compress(lines({"text": "one"}), ending) + compress(lines({"text": "two"}), ending))
    assert (read(path).texts, read(path).reasons) == (["one", "two"], [])


def test_text_and_id_columns_may_have_other_names(read, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines({"content": "one", "key": "k", "n": 1}))
    expected = [{"id": "k", "text": "one", "key": "k", "n": 1}]
    assert read(path, text_column="content", id_column="key").rows == expected


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_other_columns_chosen_as_text_and_id_lose_no_column(read, tmp_path, kind):
    row = {"content": "whole", "text": "teaser", "input_text": "seen", "id": 7, "url": "https://a.org/1"}
    path = tmp_path / f"a.{kind}"
    path.write_bytes(lines(row)) if kind == "jsonl" else pq.write_table(pa.Table.from_pylist([row]), path)
    assert read(path, text_column="content", id_column="url").rows == [
        {
            "id": "https://a.org/1",
            "text": "whole",
            "input_input_text": "teaser",
            "input_text": "seen",
            "input_id": 7,
            "url": "https://a.org/1",
        }
    ]
    assert read(path, text_column="content").rows == [
        {"id": "7", "text": "whole", "input_input_text": "teaser", "input_text": "seen", "url": "https://a.org/1"}
    ]


def test_a_column_of_mixed_types_becomes_text(read, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines(*({"text": "t", "v": v} for v in [1, "one", [1, "a"], {"k": None}, None])))
    assert [row["v"] for row in read(path).rows] == ["1", "one", '[1, "a"]', '{"k": null}', None]


# --- Parquet ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def rich() -> pa.Table:
    when = datetime(2024, 5, 18, 1, 58, tzinfo=UTC)
    return pa.table(
        {
            "content": ["one", "two"],
            "tags": pa.array([["a", None], []], pa.list_(pa.large_string())),
            "meta": pa.array([{"n": 1, "inner": [{"x": 1.5}]}, None]),
            "when": pa.array([when, None], pa.timestamp("ms", tz="UTC")),
            "price": pa.array([Decimal("1.25"), None], pa.decimal128(9, 2)),
            "kind": pa.array(["a", "a"]).dictionary_encode(),
            "raw": pa.array([b"\xff", None], pa.binary()),
            "small": pa.array([1, 2], pa.int8()),
        }
    )


def test_parquet_with_a_renamed_text_column_keeps_all_other_columns_and_their_types(read, tmp_path, rich):
    pq.write_table(rich, tmp_path / "a.parquet")
    got = read(tmp_path / "a.parquet", text_column="content").table
    others = rich.column_names[1:]
    assert got.column_names == ["id", "text", *others]
    assert got["text"].to_pylist() == ["one", "two"]
    assert got.select(others).schema.equals(rich.select(others).schema)
    assert got.select(others).equals(rich.select(others))


def test_missing_ids_are_hashes_of_the_text_whatever_the_format(read, tmp_path):
    pq.write_table(pa.table({"id": [5, None], "text": ["one", "two"]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": ["one", "two"]}), tmp_path / "b.parquet")
    (tmp_path / "c.jsonl").write_bytes(lines({"id": 5, "text": "one"}, {"id": None, "text": "two"}))
    assert [row["id"] for row in read(tmp_path / "a.parquet").rows] == ["5", text_id("two")]
    assert [row["id"] for row in read(tmp_path / "b.parquet").rows] == [text_id("one"), text_id("two")]
    assert [row["id"] for row in read(tmp_path / "c.jsonl").rows] == ["5", text_id("two")]


def test_bad_texts_in_parquet_are_rejected_row_by_row(read, tmp_path):
    values = [b"good", None, b"", b" \n", b"bad \xff utf-8", b"x" * 101, "gut ß".encode()]
    binary = pa.array(values, pa.binary())
    texts = pa.Array.from_buffers(pa.string(), len(values), binary.buffers())
    pq.write_table(pa.table({"text": texts, "n": range(len(values))}), tmp_path / "a.parquet")
    got = read(tmp_path / "a.parquet", max_text_bytes=100)
    assert [(row["text"], row["n"]) for row in got.rows] == [("good", 0), ("gut ß", 6)]
    assert [(r["place"], r["reason"]) for r in got.rejects] == [
        ("row 1", "missing_text"),
        ("row 2", "empty_text"),
        ("row 3", "empty_text"),
        ("row 4", "invalid_utf8"),
        ("row 5", "text_too_long"),
    ]


@pytest.mark.parametrize("damage", ["empty", "garbage", "truncated"])
def test_a_corrupt_parquet_file_is_one_reject_and_the_other_shards_are_read(read, tmp_path, damage):
    for name in "abc":
        pq.write_table(pa.table({"id": [name], "text": ["text"]}), tmp_path / f"{name}.parquet")
    whole = (tmp_path / "b.parquet").read_bytes()
    broken = {"empty": b"", "garbage": b"PAR1 no Parquet PAR1", "truncated": whole[: len(whole) // 2]}
    (tmp_path / "b.parquet").write_bytes(broken[damage])
    got = read(tmp_path)
    assert [row["id"] for row in got.rows] == ["a", "c"]
    assert [(Path(r["source"]).name, r["reason"]) for r in got.rejects] == [("b.parquet", "unreadable")]


def test_a_damaged_row_group_is_one_reject_and_the_other_row_groups_are_read(read, tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(varied_rows(300)), path, row_group_size=100, compression="zstd")
    chunk = pq.read_metadata(path).row_group(1).column(1)
    content = bytearray(path.read_bytes())
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    content[start : start + 50] = b"\xff" * 50
    path.write_bytes(content)
    got = read(path)
    assert [row["id"] for row in got.rows] == [str(i) for i in [*range(100), *range(200, 300)]]
    assert [(r["place"], r["reason"]) for r in got.rejects] == [("rows 100 to 199", "unreadable")]


def test_a_column_that_is_not_there_is_an_error_that_names_those_that_are(read, tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"content": ["one"], "n": [1]}), path)
    with pytest.raises(InputError, match="has no column 'text'; it has content, n"):
        read(path)
    with pytest.raises(InputError, match="has no column 'key'; it has content, n"):
        read(path, text_column="content", id_column="key")
    with pytest.raises(InputError, match="'n' holds int64, not text"):
        read(path, text_column="n")


# --- WARC and WET ----------------------------------------------------------------------------------------------------

PROSE = "The heart pumps blood through the body, and the lungs bring oxygen into it with every breath we take. " * 5


def warc_record(number: int, kind: str, body: bytes, content_type: str) -> bytes:
    header = (
        f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Record-ID: <urn:uuid:00000000-0000-0000-0000-{number:012d}>\r\n"
        f"WARC-Target-URI: http://example.com/{number}\r\nWARC-Date: 2024-05-18T01:58:10Z\r\n"
        f"Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return header.encode() + body + b"\r\n\r\n"


def response(number: int, html: str | bytes, content_type: str = "text/html") -> bytes:
    payload = html if isinstance(html, bytes) else html.encode()
    body = f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\n\r\n".encode() + payload
    return warc_record(number, "response", body, "application/http; msgtype=response")


def page(title: str) -> str:
    return f"<html><body><nav>menu</nav><article><h1>{title}</h1><p>{PROSE}</p></article></body></html>"


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_a_warc_gives_the_main_text_of_its_pages_and_a_reject_for_every_other_response(read, tmp_path, ending):
    records = [
        warc_record(0, "warcinfo", b"software: tests\r\n", "application/warc-fields"),
        warc_record(1, "request", b"GET / HTTP/1.1\r\n\r\n", "application/http; msgtype=request"),
        response(2, page("Circulation")),
        response(3, b"\x89PNG", "image/png"),
        response(4, ""),
        response(5, page("Breathing")),
    ]
    path = tmp_path / f"a.warc{ending}"
    path.write_bytes(b"".join(compress(record, ending) for record in records))
    got = read(path)
    assert [row["url"] for row in got.rows] == ["http://example.com/2", "http://example.com/5"]
    assert [row["id"][-13:-1] for row in got.rows] == ["000000000002", "000000000005"]
    assert all("heart pumps blood" in text and "menu" not in text for text in got.texts)
    assert got.reasons == ["no_main_text", "no_main_text"]
    assert "image/png" in got.rejects[0]["detail"]


def test_records_that_are_too_long_are_rejected_unread(read, tmp_path):
    path = tmp_path / "a.warc"
    path.write_bytes(response(1, "x" * 5000) + response(2, page("Circulation")))
    got = read(path, max_text_bytes=1000)
    assert [row["url"] for row in got.rows] == ["http://example.com/2"]
    assert got.reasons == ["text_too_long"]


def conversion(number: int) -> bytes:
    return warc_record(number, "conversion", f"text {number} ".encode() * 20, "text/plain")


@pytest.mark.parametrize("ending", ["", ".gz"])
@settings(max_examples=50, deadline=None)
@given(whole_records=st.integers(0, 3), cut=st.floats(0, 1, exclude_min=True, exclude_max=True))
def test_wherever_a_wet_is_clipped_the_records_before_come_and_one_truncated_reject(log, ending, whole_records, cut):
    records = [conversion(number) for number in range(4)]
    last = records[whole_records].removesuffix(b"\r\n\r\n")
    parts = [compress(record, ending) for record in records[:whole_records]]
    clipped = compress(last, ending)
    url = f"memory://clip/a.wet{ending}"
    with fsspec.open(url, "wb") as file:
        file.write(b"".join(parts) + clipped[: max(1, int(len(clipped) * cut))])
    got = read_all(log, url)
    assert got.texts == [f"text {number} " * 20 for number in range(len(got.rows))]
    assert len(got.rows) - whole_records in (0, 1)  # a record that lacks only its checksum is still readable
    assert got.reasons == ["truncated"]


def test_every_response_of_a_real_common_crawl_warc_is_a_document_or_a_reject(read, shared_data):
    got = read(shared_data / "commoncrawl_2020-34.warc.gz")
    assert len(got.rows) + len(got.rejects) == 16
    assert len(got.rows) >= 14
    assert set(got.reasons) <= {"no_main_text"}
    assert len({row["id"] for row in got.rows}) == len(got.rows)
    assert all(row["url"].startswith("http") and row["text"].strip() for row in got.rows)


def test_the_real_wet_gives_its_page_with_its_language(read, shared_data):
    got = read(shared_data / "commoncrawl_2024-22.warc.wet.gz")
    assert [(row["url"], row["language"]) for row in got.rows] == [("https://an.wikipedia.org/wiki/Escopete", "spa")]
    assert got.texts[0].startswith("Escopete - Biquipedia")
    assert got.rejects == []


@pytest.mark.parametrize(("share", "whole_responses"), [(0.1, 1), (0.3, 3), (0.5, 6), (0.999, 16)])
def test_a_clipped_warc_gives_its_readable_records_and_one_reject(read, shared_data, tmp_path, share, whole_responses):
    whole = (shared_data / "commoncrawl_2020-34.warc.gz").read_bytes()
    path = tmp_path / "clipped.warc.gz"
    path.write_bytes(whole[: int(share * len(whole))])
    got = read(path)
    assert got.reasons.count("truncated") == 1
    assert len(got.rows) + got.reasons.count("no_main_text") == whole_responses


# --- Other places ----------------------------------------------------------------------------------------------------


def test_every_format_is_read_from_any_file_system(read):
    memory = fsspec.filesystem("memory")
    memory.pipe("/any/a.jsonl.gz", gzip.compress(lines({"text": "one"})))
    memory.pipe("/any/b.wet", conversion(2))
    with memory.open("/any/c.parquet", "wb") as file:
        pq.write_table(pa.table({"text": ["three"]}), file)
    got = read("memory://any")
    assert [text.split()[0] for text in got.texts] == ["one", "text", "three"]


def test_a_shard_that_vanishes_before_it_is_read_is_a_reject(read, tmp_path):
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_bytes(lines({"text": name}))
    shards, _ = list_shards(SourceConfig(paths=[str(tmp_path)]))
    (tmp_path / "a.jsonl").unlink()
    got = read(shards=shards)
    assert (got.texts, got.reasons) == (["b.jsonl"], ["unreadable"])


def test_the_installed_corpus_has_hundreds_of_documents_with_unique_ids_and_is_always_the_same(read):
    got = read("installed:")
    assert len(got.rows) > 100
    assert len({row["id"] for row in got.rows}) == len(got.rows)
    assert {"reference", "module", "description", "licence"} == {row["source"] for row in got.rows}
    assert got.rejects == []
    assert list(read_installed()) == got.rows
    assert fingerprint() == fingerprint()
