"""WARC and WET archives of Common Crawl and others.

A WET record holds a text. The main text of a page in a WARC record is extracted as the source's `extractor` says.
After damage, or bytes that are not a record, reading resumes at the next record. FastWARC stops there and loses
the rest of the archive, which is why it is not used here.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from typing import NamedTuple

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.readers.base import Problem, Record, Row
from ml_filter.documents.readers.files import Gap, InputFile, stream_of
from ml_filter.documents.readers.http import decoded_body, parse_headers, parse_response, text_of

_VERSION = re.compile(rb"WARC/\d\.\d+\s*$")
_LENGTH = re.compile("[0-9]{1,12}")
_LINE = 2**16


class _WarcRecord(NamedTuple):
    location: str
    headers: dict[str, str]
    body: bytes


def read_records(file: InputFile, source: SourceConfig) -> Iterator[Record]:
    """The documents of all responses (WARC) and conversions (WET): `id`, `url`, `date`, text, and `language` in WET."""
    pieces = file.pieces()
    number = 0
    gap: Gap | None = Gap("", "unreadable")
    while gap is not None:
        segment = _Segment(pieces)
        is_cut_off = False
        for record in _records(segment.stream, source):
            number += 1
            if isinstance(record, _WarcRecord):
                yield f"record {number}, {record.location}", _document(record, source)
                continue
            is_cut_off = record.reason == "truncated"
            detail = f"{record.detail}; {segment.gap.detail}" if is_cut_off and segment.gap else record.detail
            yield f"record {number}", Problem(record.reason, detail)
        gap = segment.gap
        if gap is not None and not is_cut_off:
            yield f"after record {number}", Problem(gap.reason, gap.detail)


class _Segment:
    """The content of an archive up to the next gap."""

    def __init__(self, pieces: Iterator[bytes | Gap]) -> None:
        self.gap: Gap | None = None
        self.stream = stream_of(self._read(pieces))

    def _read(self, pieces: Iterator[bytes | Gap]) -> Iterator[bytes]:
        for piece in pieces:
            if isinstance(piece, Gap):
                self.gap = piece
                return
            yield piece


def _records(stream: io.BufferedReader, source: SourceConfig) -> Iterator[_WarcRecord | Problem]:
    """The records that can hold documents, and what is not a record."""
    skipped, why, line = 0, "", b""
    for line in iter(lambda: stream.readline(_LINE), b""):
        version = _VERSION.search(line)
        skipped += version.start() if version else len(line) if line.strip() else 0
        if not version:
            continue
        if skipped:
            yield Problem("unreadable", f"{skipped:,} bytes are not a record{why}")
            skipped, why = 0, ""
        head, is_whole = _read_head(stream)
        headers = parse_headers(line + head)
        length = headers.get("content-length", "")
        if not is_whole:
            yield Problem("truncated", "the header is cut off")
            return
        if not _LENGTH.fullmatch(length):
            skipped, why = len(line + head), f": the header has no length (Content-Length: {length[:20]!r})"
            continue
        kept = headers.get("warc-type", "").lower() in ("response", "conversion", "resource")
        location = headers.get("warc-record-id") or headers.get("warc-target-uri", "")
        body, missing = b"", int(length)
        if kept and missing <= 4 * source.max_text_bytes:
            body = stream.read(missing)
            missing -= len(body)
        elif kept:
            yield Problem("text_too_long", f"{location}: a record of {missing:,} bytes")
            kept = False
        while missing and (piece := stream.read(min(missing, _LINE))):
            missing -= len(piece)
        if missing:
            yield Problem("truncated", f"{location}: {int(length) - missing:,} of {int(length):,} bytes")
            return
        if kept:
            yield _WarcRecord(location, headers, body)
    if skipped and b"WARC/1.0\r\n".startswith(line.replace(b".1", b".0")):
        yield Problem("truncated", "the archive ends inside a record's header")
    elif skipped:
        yield Problem("unreadable", f"{skipped:,} bytes are not a record{why}")


def _read_head(stream: io.BufferedReader) -> tuple[bytes, bool]:
    """The header fields, and whether a blank line ends them."""
    head = b""
    while len(head) < 2**20 and (line := stream.readline(_LINE)):
        if not line.strip():
            return head, line.endswith(b"\n")
        head += line
    return head, False


def _document(record: _WarcRecord, source: SourceConfig) -> Row | Problem:
    headers = record.headers
    url = headers.get("warc-target-uri", "").strip("<>") or None
    row = {"id": headers.get("warc-record-id"), "url": url, "date": headers.get("warc-date")}
    if headers["warc-type"].lower() == "conversion":
        try:
            text = record.body.decode("utf-8")
        except UnicodeDecodeError as error:
            return Problem("invalid_utf8", f"byte {error.start}: {error.reason}")
        return {**row, "language": headers.get("warc-identified-content-language"), source.text_column: text}
    response = parse_response(record.body)
    if response.status is not None and not 200 <= response.status < 300:
        return Problem("http_status", f"{response.status} {response.reason}".strip())
    content_type = response.headers.get("content-type", "")
    if response.status is None and not headers.get("content-type", "").lower().startswith("application/http"):
        content_type = headers.get("content-type", "")
    body = decoded_body(response, 4 * source.max_text_bytes)
    page = text_of(body, content_type, source)
    return page if isinstance(page, Problem) else {**row, source.text_column: page}
