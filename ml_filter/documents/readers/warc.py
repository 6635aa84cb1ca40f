"""WARC and WET archives of Common Crawl, plain or compressed.

A WET record holds a text. The main text of a page in a WARC record is extracted as the source's `extractor` says.
"""

from __future__ import annotations

import gzip
import io
import re
from collections.abc import Iterator
from typing import IO, Any

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.extraction import ExtractionError, main_text
from ml_filter.documents.readers.base import TRUNCATION_ERRORS, Problem, Record, Row


def read_records(raw: IO[bytes], uri: str, source: SourceConfig) -> Iterator[Record]:
    """The documents of all responses (WARC) and conversions (WET): `id`, `url`, `date`, text, and `language` in WET."""
    from fastwarc.warc import ArchiveIterator, WarcRecordType

    last = 0
    without_length = False
    kinds = WarcRecordType.response | WarcRecordType.conversion | WarcRecordType.resource
    try:
        for record in ArchiveIterator(raw, record_types=kinds):
            last = record.stream_pos
            location = f"record {record.record_id} at byte {last}"
            without_length = not record.headers.get("Content-Length")
            if without_length:  # FastWARC takes a header that is cut off for that of an empty record
                yield location, Problem("truncated", "the record's header has no length")
                continue
            if record.content_length > 4 * source.max_text_bytes:
                yield location, Problem("text_too_long", f"a record of {record.content_length:,} bytes")
                continue
            body = record.reader.read()
            if len(body) < record.content_length:
                yield location, Problem("truncated", f"{len(body):,} of {record.content_length:,} bytes")
                return
            yield location, _document(record, body, source)
    except Exception as error:  # FastWARC's stream errors have no common base
        yield f"after byte {last}", Problem("truncated", f"{type(error).__name__}: {error}")
        return
    if not without_length and (detail := _truncation_after(raw, last)):
        yield f"after byte {last}", Problem("truncated", detail)


def _document(record: Any, body: bytes, source: SourceConfig) -> Row | Problem:
    from fastwarc.warc import WarcRecordType

    url = record.headers.get("WARC-Target-URI")
    row = {"id": record.record_id, "url": url, "date": record.headers.get("WARC-Date")}
    if record.record_type == WarcRecordType.conversion:
        try:
            text = body.decode("utf-8")
        except UnicodeDecodeError as error:
            return Problem("invalid_utf8", f"byte {error.start}: {error.reason}")
        return {**row, "language": record.headers.get("WARC-Identified-Content-Language"), source.text_column: text}
    from trafilatura.utils import decode_file

    content_type = record.http_content_type or ""
    if content_type and not content_type.startswith(("text/", "application/xhtml")):
        return Problem("no_main_text", f"content type {content_type}")
    try:
        text = main_text(decode_file(body), source.extractor, source.max_extraction_seconds)
    except ExtractionError as error:
        return Problem(error.reason, str(error))
    if not text:
        return Problem("no_main_text", f"{len(body):,} bytes of {content_type or 'unknown type'}")
    return {**row, source.text_column: text}


def _truncation_after(raw: IO[bytes], position: int) -> str | None:
    """Whether the file ends inside a record after `position`: FastWARC takes such an end for the end of the file."""
    raw.seek(position)
    is_gzip = raw.read(2) == b"\x1f\x8b"
    raw.seek(position)
    if not is_gzip:
        return _plain_truncation_after(raw, position)
    try:
        with gzip.open(raw) as stream:
            while stream.read(2**20):
                pass
    except TRUNCATION_ERRORS as error:
        return str(error)
    return None


def _plain_truncation_after(raw: IO[bytes], position: int) -> str | None:
    end = raw.seek(0, io.SEEK_END)
    while position < end:
        raw.seek(position)
        head = raw.read(2**16)
        start = len(head) - len(head.lstrip())
        header, blank_line, _ = head[start:].partition(b"\r\n\r\n")
        length = re.search(rb"(?mi)^content-length:\s*(\d+)", header)
        if start == len(head):
            position += start
        elif not blank_line or length is None:
            return "the archive ends inside a record's header"
        else:
            position += start + len(header) + len(blank_line) + int(length[1])
    return None if position == end else "the archive ends inside a record"
