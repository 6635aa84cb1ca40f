import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.documents.readers.reading import compress, read_all

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
def test_pages_give_their_main_text_and_other_responses_are_rejects(read, tmp_path, ending):
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
    result = read(path)
    assert [row["url"] for row in result.rows] == ["http://example.com/2", "http://example.com/5"]
    assert [row["id"][-13:-1] for row in result.rows] == ["000000000002", "000000000005"]
    assert all("heart pumps blood" in text and "menu" not in text for text in result.texts)
    assert result.reasons == ["no_main_text", "no_main_text"]
    assert "image/png" in result.rejects[0]["detail"]


def test_a_record_that_is_too_long_is_rejected_without_reading_it(read, tmp_path):
    path = tmp_path / "a.warc"
    path.write_bytes(response(1, "x" * 5000) + response(2, page("Circulation")))
    result = read(path, max_text_bytes=1000)
    assert [row["url"] for row in result.rows] == ["http://example.com/2"]
    assert result.reasons == ["text_too_long"]


def conversion(number: int) -> bytes:
    return warc_record(number, "conversion", f"text {number} ".encode() * 20, "text/plain")


@pytest.mark.parametrize("ending", ["", ".gz"])
@settings(max_examples=50, deadline=None)
@given(whole_records=st.integers(0, 3), cut=st.floats(0, 1, exclude_min=True, exclude_max=True))
def test_a_wet_truncated_anywhere_gives_the_records_before_and_one_reject(log, ending, whole_records, cut):
    records = [conversion(number) for number in range(4)]
    last = records[whole_records].removesuffix(b"\r\n\r\n")
    parts = [compress(record, ending) for record in records[:whole_records]]
    clipped = compress(last, ending)
    url = f"memory://clip/a.wet{ending}"
    with fsspec.open(url, "wb") as file:
        file.write(b"".join(parts) + clipped[: max(1, int(len(clipped) * cut))])
    result = read_all(log, url)
    assert result.texts == [f"text {number} " * 20 for number in range(len(result.rows))]
    assert len(result.rows) - whole_records in (0, 1)  # a record that lacks only its checksum is still readable
    assert result.reasons == ["truncated"]


def test_every_response_of_a_real_warc_is_a_document_or_a_reject(read, shared_data):
    result = read(shared_data / "commoncrawl_2020-34.warc.gz")
    assert len(result.rows) + len(result.rejects) == 16
    assert len(result.rows) >= 14
    assert set(result.reasons) <= {"no_main_text"}
    assert len({row["id"] for row in result.rows}) == len(result.rows)
    assert all(row["url"].startswith("http") and row["text"].strip() for row in result.rows)


def test_a_real_wet_gives_its_page_with_its_language(read, shared_data):
    result = read(shared_data / "commoncrawl_2024-22.warc.wet.gz")
    assert [(row["url"], row["language"]) for row in result.rows] == [("https://an.wikipedia.org/wiki/Escopete", "spa")]
    assert result.texts[0].startswith("Escopete - Biquipedia")
    assert result.rejects == []


@pytest.mark.parametrize(("share", "whole_responses"), [(0.1, 1), (0.3, 3), (0.5, 6), (0.999, 16)])
def test_a_truncated_warc_gives_its_readable_records_and_one_reject(
    read, shared_data, tmp_path, share, whole_responses
):
    whole = (shared_data / "commoncrawl_2020-34.warc.gz").read_bytes()
    path = tmp_path / "clipped.warc.gz"
    path.write_bytes(whole[: int(share * len(whole))])
    result = read(path)
    assert result.reasons.count("truncated") == 1
    assert len(result.rows) + result.reasons.count("no_main_text") == whole_responses


def test_a_page_that_takes_too_long_is_rejected_with_its_location(read, tmp_path):
    path = tmp_path / "a.warc"
    long_tag = "<html><body><div " + " ".join(f"a{number}" for number in range(300_000)) + ">"
    path.write_bytes(response(1, page("Before")) + response(2, long_tag) + response(3, page("After")))
    result = read(path, max_extraction_seconds=0.3, extractor="resiliparse")
    assert [row["url"] for row in result.rows] == ["http://example.com/1", "http://example.com/3"]
    assert result.reasons == ["extraction_timeout"]
    assert "000000000002" in result.rejects[0]["place"]
    assert result.rejects[0]["detail"] == "resiliparse took more than 0.3 s"


def test_the_extractor_is_a_setting(read, tmp_path):
    path = tmp_path / "a.warc"
    path.write_bytes(response(1, page("Circulation")))
    texts = {extractor: read(path, extractor=extractor).texts[0] for extractor in ("trafilatura", "text")}
    assert "menu" not in texts["trafilatura"]
    assert "menu" in texts["text"]
