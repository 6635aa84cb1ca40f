"""PDF: a file is one document, with the text of `documents/pdf.py` and the columns `title` and `pages`.

A PDF that is encrypted or damaged, takes too long or has no text (a scan) is a reject. Needs the extra `fetch`.
"""

from __future__ import annotations

from collections.abc import Iterator

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.extraction import ExtractionError, read_pdf
from ml_filter.documents.readers.base import Problem, Record, Row
from ml_filter.documents.readers.files import DamagedFile, InputFile

_LOCATION = "document"
MAX_BYTES = 256 * 2**20
"""Largest PDF; more than a tenth of it is rarely text."""


def read_records(file: InputFile, source: SourceConfig) -> Iterator[Record]:
    """The document of a file, or why the file has no document."""
    try:
        content = file.stream().read(MAX_BYTES + 1)
    except DamagedFile as error:
        yield _LOCATION, Problem(error.reason, str(error))
        return
    yield _LOCATION, document_of(content, source)


def document_of(content: bytes, source: SourceConfig) -> Row | Problem:
    """The text, title and number of pages of a PDF."""
    if len(content) > MAX_BYTES:
        return Problem("text_too_long", f"a PDF of more than {MAX_BYTES:,} bytes")
    try:
        pdf = read_pdf(content, source.max_extraction_seconds)
    except ExtractionError as error:
        return Problem(error.reason, str(error))
    if not pdf.text:
        return Problem("no_main_text", f"a PDF without text, perhaps a scan; pages: {pdf.pages:,}")
    return {source.text_column: pdf.text, "title": pdf.title, "pages": pdf.pages}
