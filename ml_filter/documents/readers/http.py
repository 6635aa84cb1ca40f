"""HTTP responses: decoded bodies and texts, although the headers may not be true."""

from __future__ import annotations

import codecs
import re
import zlib
from collections.abc import Mapping
from typing import NamedTuple

import brotli  # type: ignore[import-untyped]
import zstandard

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.extraction import ExtractionError, main_text
from ml_filter.documents.readers.base import Problem
from ml_filter.documents.readers.files import encoding_of

_HTML = ("text/html", "application/xhtml+xml")
_PLAIN = ("text/plain", "text/markdown", "text/x-markdown")
_BEGINS_AS_HTML = re.compile(rb"(?i)(\xef\xbb\xbf)?\s*<(!doctype\s+html|html)[\s>]")
_LOOKS_LIKE_HTML = re.compile(rb"(?i)<(!doctype\s+html|html|head|body|title|meta|div|p|h1|table|script|article)[\s>]")
_BLANK_LINE = re.compile(rb"\r?\n[ \t]*\r?\n")
_STATUS = re.compile(rb"HTTP/\d(?:\.\d)? +(\d{3})(?: ([^\r\n]*))?")
_CHUNK_SIZE = re.compile(rb"[ \t]*([0-9A-Fa-f]{1,8})[ \t]*(?:;[^\n]*)?\r?\n")
_CHARSET = re.compile(r"""charset\s*=\s*["']?\s*([^\s;"']+)""", re.IGNORECASE)
_META_CHARSET = re.compile(rb"""(?i)<(?:meta\s[^>]*?charset|\?xml\s[^>]*?encoding)\s*=\s*["']?\s*([\w.:-]+)""")
_AS_BROWSERS_READ = {
    "ascii": "cp1252", "iso8859-1": "cp1252", "iso8859-9": "cp1254", "iso8859-11": "cp874", "tis-620": "cp874",
    "gb2312": "gb18030", "gbk": "gb18030", "shift_jis": "cp932", "euc_kr": "cp949", "big5": "big5hkscs",
}  # fmt: skip
"""Encodings that the WHATWG standard reads as a superset, by Python's names."""
_NOT_LIKE_UTF_8 = {
    "gb18030", "cp932", "cp949", "big5hkscs", "euc_jp", "iso2022_jp", "hz", "utf-16", "utf-16-le", "utf-16-be",
}  # fmt: skip
"""Encodings in which a short text can by chance be valid UTF-8 too."""
_NO_CHARSETS = {"idna", "punycode", "utf-7", "unicode-escape", "raw-unicode-escape", "undefined"}


class Response(NamedTuple):
    """An HTTP response; `status` is None if the record is not one, `headers` are by lower-case name."""

    status: int | None
    reason: str
    headers: Mapping[str, str]
    body: bytes


def parse_response(record: bytes) -> Response:
    """The parts of a response, with its body as it was sent."""
    status = _STATUS.match(record)
    if status is None:
        return Response(None, "", {}, record)
    end = _BLANK_LINE.search(record)
    head, body = (record[: end.start()], record[end.end() :]) if end else (record, b"")
    code = int(status[1])
    if code < 200 and _STATUS.match(body):  # 100 Continue comes before the response
        return parse_response(body)
    return Response(code, (status[2] or b"").decode("latin-1").strip(), parse_headers(head), body)


def parse_headers(head: bytes) -> dict[str, str]:
    """Header fields by lower-case name; of a field that occurs several times, the first."""
    headers: dict[str, str] = {}
    lines = re.sub(rb"\r?\n[ \t]+", b" ", head).splitlines()
    for line in lines[1:]:
        name, colon, value = line.partition(b":")
        if colon:
            text = value.strip().decode("utf-8", "replace")
            headers.setdefault(name.strip().lower().decode("latin-1"), text)
    return headers


def decoded_body(response: Response, limit: int) -> bytes:
    """The body without its transfer and content encodings, at most `limit` bytes; encodings that it does not have are
    ignored, because archives decode bodies and often keep the headers."""
    body = response.body
    transfer = response.headers.get("transfer-encoding", "").lower()
    if chunks := _chunks_of(body, must_end="chunked" not in transfer):
        body = chunks
    for encoding in reversed(response.headers.get("content-encoding", "").lower().split(",")):
        body = _decompressed(body, encoding.strip(), limit) or body
    if body.startswith(b"\x1f\x8b\x08"):
        body = _decompressed(body, "gzip", limit) or body
    return body


def _chunks_of(body: bytes, must_end: bool) -> bytes | None:
    """The joined chunks of a chunked body, also if it is cut off, unless it must end with the last chunk."""
    chunks, position = [], 0
    while size := _CHUNK_SIZE.match(body, position):
        length = int(size[1], 16)
        chunk = body[size.end() : size.end() + length]
        chunks.append(chunk)
        position = size.end() + length
        if length == 0:
            return b"".join(chunks)
        if len(chunk) < length or position == len(body):
            break
        line_end = re.compile(rb"\r?\n").match(body, position)
        if line_end is None:
            return None
        position = line_end.end()
    return b"".join(chunks) if chunks and not must_end else None


def _decompressed(body: bytes, encoding: str, limit: int) -> bytes | None:
    """The decompressed body, also if it is cut off; None: it is not compressed in this way."""
    try:
        if encoding in ("gzip", "x-gzip"):
            return zlib.decompressobj(wbits=31).decompress(body, limit)
        if encoding == "deflate":
            try:
                return zlib.decompressobj().decompress(body, limit)
            except zlib.error:
                return zlib.decompressobj(wbits=-15).decompress(body, limit)
        if encoding == "br":
            return bytes(brotli.Decompressor().process(body, output_buffer_limit=limit))
        if encoding == "zstd":
            stream = zstandard.ZstdDecompressor(max_window_size=2**27).stream_reader(body, read_across_frames=True)
            return bytes(stream.read(limit))
    except (zlib.error, brotli.error, zstandard.ZstdError):
        pass
    return None


def text_of(body: bytes, content_type: str, source: SourceConfig) -> str | Problem:
    """The text of a plain text, or the main text of a page."""
    text = markup_of(body, content_type)
    if isinstance(text, Problem):
        return text
    if is_html(body, content_type):
        try:
            text = main_text(text, source.extractor, source.max_extraction_seconds)
        except ExtractionError as error:
            return Problem(error.reason, str(error))
    if not text or "\x00" in text:
        return Problem("no_main_text", f"{len(body):,} bytes of {content_type or 'unknown type'}")
    return text


def is_html(body: bytes, content_type: str) -> bool:
    """Whether a body is a web page, by its media type and, where that says little, by how it begins."""
    kind = _kind(content_type)
    if kind in _PLAIN:
        return _BEGINS_AS_HTML.match(body) is not None
    if not kind or kind.startswith("text/") or kind.endswith("xml"):
        return kind in _HTML or _LOOKS_LIKE_HTML.search(body[:2048]) is not None
    return kind in _HTML


def markup_of(body: bytes, content_type: str) -> str | Problem:
    """The decoded body of a plain text or a page, with its tags."""
    from trafilatura.utils import decode_file

    kind = _kind(content_type)
    if kind and kind not in _PLAIN and not is_html(body, content_type):
        return Problem("no_main_text", f"content type {content_type}")
    if not body.strip() or body.startswith(b"\x1f\x8b"):  # what is left of a damaged gzip
        return Problem("no_main_text", f"{len(body.strip()):,} bytes of {content_type or 'unknown type'}")
    text: str = decoded_text(body, content_type) or decode_file(body) or ""
    return text


def _kind(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()


def decoded_text(body: bytes, content_type: str) -> str | None:
    """The text of a body by its byte order mark, as UTF-8 if it is, or by the charset of the header or of the page.

    Many servers send one charset for all pages, so valid UTF-8 goes before a header that says otherwise.

    Returns:
        The text; None: no charset is known that fits the body.
    """
    unicode, mark = encoding_of(body)
    if mark or unicode != "utf-8":
        return body[len(mark) :].decode(unicode, "replace")
    header, meta = _CHARSET.search(content_type), _META_CHARSET.search(body[:4096])
    declared = [_encoding(header[1])] if header else []
    # What was read as ASCII to find the charset cannot be UTF-16.
    declared += [_encoding(meta[1].decode("latin-1"))] if meta and not meta[1].lower().startswith(b"utf-16") else []
    encodings = [encoding for encoding in declared if encoding]
    if not encodings or encodings[0] not in _NOT_LIKE_UTF_8:
        encodings.insert(0, "utf-8")
    for encoding in encodings:
        try:
            return body.decode(encoding)
        except UnicodeError:
            continue
    text = body.decode("utf-8", "replace")
    if text.count("\ufffd") * 10 < len(text) - sum(map(str.isascii, text)):  # a few damaged letters
        return text
    other = next((encoding for encoding in encodings if encoding != "utf-8"), None)
    return body.decode(other, "replace") if other else None


def _encoding(name: str) -> str | None:
    """Python's name of the encoding that browsers take this charset for; None: it is unknown or not a text encoding."""
    try:
        codec = codecs.lookup(name.strip().lower())
    except (LookupError, ValueError):
        return None
    if not codec._is_text_encoding or codec.name in _NO_CHARSETS:
        return None
    return _AS_BROWSERS_READ.get(codec.name, codec.name)
