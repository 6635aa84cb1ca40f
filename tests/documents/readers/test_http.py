"""Responses in archives: transfer and content encodings, charsets, media types and status codes, true or not."""

import gzip
import re
import struct
import zlib

import brotli
import pytest
import zstandard

from tests.documents.readers.test_warc import PROSE, warc_record

GERMAN = "Die Flüsse tragen gelöste Salze von den Bergen zum Meer, wo die Verdunstung sie zurücklässt. " * 5
RUSSIAN = "Реки несут растворённые соли прямо в море, где испарение оставляет их и делает воду солёной. " * 5
POLISH = "Rzeki niosą rozpuszczone sole z gór do morza, gdzie parowanie pozostawia je i źle smakująca woda. " * 5
ARABIC = "تحمل الأنهار الأملاح الذائبة من الجبال إلى البحر حيث يتركها التبخر ويصبح الماء مالحا ببطء. " * 5
JAPANESE = "川は山から海へ溶けた塩を運び、蒸発によって塩が残り、水はゆっくりと塩辛くなります。" * 8


def page(text: str, head: str = "") -> str:
    return f"<html><head>{head}</head><body><article><h1>Lesson</h1><p>{text}</p></article></body></html>"


def http(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    head = "\r\n".join([f"HTTP/1.1 {status}", *headers])
    return warc_record(1, "response", f"{head}\r\n\r\n".encode() + body, "application/http; msgtype=response")


def chunked(body: bytes, size: int = 100) -> bytes:
    pieces = [body[i : i + size] for i in range(0, len(body), size)]
    return b"".join(b"%x;note\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def deflated(body: bytes) -> bytes:
    raw = zlib.compressobj(wbits=-15)
    return raw.compress(body) + raw.flush()


@pytest.fixture
def read_record(read, tmp_path):
    def read_one(record: bytes):
        (tmp_path / "a.warc.gz").write_bytes(gzip.compress(record))
        return read(tmp_path / "a.warc.gz", extractor="text")

    return read_one


ENCODINGS = {
    "none": (lambda body: body, ()),
    "chunked": (chunked, ("Transfer-Encoding: chunked",)),
    "chunked, header dropped": (chunked, ()),
    "gzip": (gzip.compress, ("Content-Encoding: gzip",)),
    "gzip, header dropped": (gzip.compress, ()),
    "zlib": (zlib.compress, ("content-encoding: Deflate",)),
    "deflate": (deflated, ("Content-Encoding: deflate",)),
    "brotli": (brotli.compress, ("Content-Encoding: br",)),
    "zstandard": (zstandard.compress, ("Content-Encoding: zstd",)),
    "chunked gzip": (
        lambda body: chunked(gzip.compress(body)),
        ("Transfer-Encoding: chunked", "Content-Encoding: gzip"),
    ),
    "two encodings": (lambda body: gzip.compress(brotli.compress(body)), ("Content-Encoding: br, gzip",)),
}


@pytest.mark.parametrize("name", ENCODINGS)
def test_bodies_are_decoded_also_without_the_header(read_record, name):
    encode, headers = ENCODINGS[name]
    result = read_record(http(encode(page(RUSSIAN).encode()), "Content-Type: text/html; charset=utf-8", *headers))
    assert RUSSIAN.strip() in result.texts[0]


@pytest.mark.parametrize(
    "header",
    ["Transfer-Encoding: chunked", *(f"Content-Encoding: {name}" for name in ("gzip", "br", "deflate", "zstd", "x"))],
)
def test_a_header_that_is_not_true_is_ignored(read_record, header):
    result = read_record(http(page(PROSE).encode(), "Content-Type: text/html", header))
    assert PROSE.strip() in result.texts[0]


def test_a_body_that_is_cut_off_gives_its_start(read_record):
    for body, header in (
        (chunked(page(PROSE).encode(), 400)[:-100], "Transfer-Encoding: chunked"),
        (gzip.compress(page(PROSE).encode())[:-20], "Content-Encoding: gzip"),
    ):
        [text] = read_record(http(body, "Content-Type: text/html", header)).texts
        assert PROSE[:30] in text


CHARSETS = [
    (ARABIC, "iso-8859-6", "Content-Type: text/html; charset=ISO-8859-6", ""),
    (ARABIC, "cp1256", 'Content-Type: text/html;charset="windows-1256"', ""),
    (POLISH, "iso-8859-2", "Content-Type: text/html; charset=iso-8859-2", ""),
    (POLISH, "iso-8859-2", "Content-Type: text/html", "<meta charset=iso-8859-2>"),
    (
        RUSSIAN,
        "koi8-r",
        "Content-Type: text/html",
        '<meta http-equiv="Content-Type" content="text/html; charset=koi8-r">',
    ),
    (RUSSIAN, "cp1251", "Content-Type: text/html; charset=windows-1251", '<meta charset="utf-8">'),
    (JAPANESE, "shift_jis", "Content-Type: text/html; charset=Shift_JIS", ""),
    (JAPANESE, "euc_jp", "Content-Type: text/html; charset=EUC-JP", ""),
    (JAPANESE, "iso2022_jp", "Content-Type: text/html; charset=iso-2022-jp", ""),
    (GERMAN, "latin-1", "Content-Type: text/html; charset=iso-8859-1", ""),
    (GERMAN, "utf-8", "Content-Type: text/html; charset=iso-8859-1", '<meta charset="utf-8">'),
    (GERMAN, "utf-8", "Content-Type: text/html; charset=nonsense", ""),
    (GERMAN, "utf-8", "Content-Type: text/html", '<meta charset="utf-16">'),
    (GERMAN, "utf-8-sig", "Content-Type: text/html; charset=iso-8859-2", ""),
    (GERMAN, "utf-16", "Content-Type: text/html; charset=utf-8", ""),
    (GERMAN, "utf-16-le", "Content-Type: text/html; charset=utf-16", ""),
    (GERMAN, "cp1252", "Content-Type: text/html; charset=utf-8", ""),
]


@pytest.mark.parametrize(("text", "encoding", "header", "head"), CHARSETS)
def test_the_charset_is_that_of_the_bytes_the_header_or_the_page(read_record, text, encoding, header, head):
    body = page(text.replace("“", '"'), head).encode(encoding, "ignore")
    expected = text.encode(encoding, "ignore").decode(encoding).removeprefix("\ufeff").strip()
    assert expected in read_record(http(body, header)).texts[0]


def test_a_few_damaged_letters_do_not_change_the_charset(read_record):
    body = page(RUSSIAN).encode().replace("соли".encode(), b"\xd1", 1)
    assert RUSSIAN[100:200] in read_record(http(body, "Content-Type: text/html; charset=utf-8")).texts[0]


@pytest.mark.parametrize("status", ["404 Not Found", "301 Moved Permanently", "503", "304 Not Modified"])
def test_a_response_other_than_2xx_is_a_reject_with_its_status(read_record, status):
    result = read_record(http(page(PROSE).encode(), "Content-Type: text/html", status=status))
    assert result.texts == []
    assert [(reject["reason"], reject["detail"]) for reject in result.rejects] == [("http_status", status)]


def test_an_interim_response_is_not_the_response(read_record):
    final = b"HTTP/1.1 206 Partial Content\r\nContent-Type: text/plain\r\n\r\nthe text"
    assert read_record(http(final, status="100 Continue")).texts == ["the text"]


@pytest.mark.parametrize(
    "header",
    [
        "Content-Type: TEXT/HTML",
        "content-TYPE:text/html;charset=x",
        "Content-Type: application/xhtml+xml",
        "X: y",
        "Content-Type: text/xml",
    ],
)
def test_pages_are_known_by_their_media_type_or_their_content(read_record, header):
    assert PROSE.strip() in read_record(http(page(PROSE).encode(), header)).texts[0]


@pytest.mark.parametrize("header", ["Content-Type: text/plain", "Content-Type: Text/Markdown; charset=utf-8", "X: y"])
def test_plain_text_is_the_text(read_record, header):
    assert read_record(http(b"1 < 2,\n\nas it is", header)).texts == ["1 < 2,\n\nas it is"]


@pytest.mark.parametrize(
    ("header", "body"),
    [
        ("Content-Type: application/json", b'{"a": "text"}'),
        ("Content-Type: text/css", b"p { color: red }"),
        ("Content-Type: application/rss+xml", b"<rss><item>x</item></rss>"),
        ("Content-Type: image/png", b"\x89PNG"),
        ("Content-Type: text/plain", b"\x00\x01\x02"),
        ("X: y", b"\x89PNG\r\n\x1a\n\x00\x00"),
        ("Content-Type: text/html", b" "),
    ],
)
def test_other_media_are_rejects(read_record, header, body):
    result = read_record(http(body, header))
    assert (result.texts, result.reasons) == ([], ["no_main_text"])


def test_resources_have_their_media_type_in_the_record(read_record):
    assert read_record(warc_record(1, "resource", b"the text", "text/plain")).texts == ["the text"]
    assert read_record(warc_record(1, "resource", b"\x89PNG", "image/png")).reasons == ["no_main_text"]
    assert read_record(warc_record(1, "revisit", b"HTTP/1.1 200 OK\r\n\r\n", "application/http")).rows == []


# --- Damaged archives ------------------------------------------------------------------------------------------------


def plain(number: int) -> bytes:
    body = f"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\ntext {number}".encode()
    return warc_record(number, "response", body, "application/http")


@pytest.mark.parametrize("compress", [gzip.compress, zstandard.compress, bytes])
@pytest.mark.parametrize("junk", [b"junk between records", b"\x1f\x8b\x08junk", b"x" * 100_000])
def test_reading_goes_on_after_bytes_that_are_not_a_record(read, tmp_path, compress, junk):
    path = tmp_path / "a.warc.gz"
    path.write_bytes(compress(plain(1)) + junk + compress(plain(2)) + compress(plain(3)))
    result = read(path)
    assert result.texts == ["text 1", "text 2", "text 3"]
    assert result.reasons == ["unreadable"]
    assert f"{len(junk):,} bytes" in result.rejects[0]["detail"]


def test_reading_goes_on_after_a_damaged_member(read, tmp_path):
    members = [gzip.compress(plain(number)) for number in range(4)]
    members[1] = members[1][:40] + b"\xff" * 20 + members[1][60:]
    (tmp_path / "a.warc.gz").write_bytes(b"".join(members))
    result = read(tmp_path / "a.warc.gz")
    assert result.texts == ["text 0", "text 2", "text 3"]
    assert len(result.rejects) == 1


@pytest.mark.parametrize("length", [b"Length: 5", b"Content-Length: -1", b"Content-Length: " + b"9" * 5000])
def test_a_record_without_a_length_is_one_reject(read, tmp_path, length):
    (tmp_path / "a.warc").write_bytes(re.sub(rb"Content-Length: \d+", length, plain(1)) + plain(2))
    result = read(tmp_path / "a.warc")
    assert (result.texts, result.reasons) == (["text 2"], ["unreadable"])


def test_a_warc_with_a_dictionary_is_read(read, tmp_path):
    dictionary = zstandard.ZstdCompressionDict(plain(1) * 20)
    compressor = zstandard.ZstdCompressor(dict_data=dictionary)
    for content in (dictionary.as_bytes(), zstandard.compress(dictionary.as_bytes())):
        header = struct.pack("<II", 0x184D2A5D, len(content)) + content
        frames = b"".join(compressor.compress(plain(number)) for number in range(3))
        (tmp_path / "a.warc.zst").write_bytes(header + frames)
        assert read(tmp_path / "a.warc.zst").texts == ["text 0", "text 1", "text 2"]
