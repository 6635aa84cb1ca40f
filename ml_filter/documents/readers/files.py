"""Open a file of a source: what its first bytes say about compression, format and encoding goes before its name."""

from __future__ import annotations

import bz2
import codecs
import io
import lzma
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import IO, Any, Literal, NamedTuple, cast

import fsspec
import pyarrow as pa
import zstandard

from ml_filter.documents.readers.base import Format
from ml_filter.errors import InputError

Compression = Literal["gzip", "zstd", "xz", "bzip2", "lz4"]
_BLOCK = 2**16
_PIECE = 2**13
"""Compressed bytes are decompressed in small pieces: what comes before damage is read, and memory stays low."""
_ZSTD_PIECE = 2**10
"""Smaller, because zstandard cannot limit what a piece becomes: at most 32 MiB of this one."""
_CONTENT = 2**20
_MAX_EXPANSION = 200
_ALLOWED_EXPANSION = 2**28
"""A file whose content exceeds this many bytes and that multiple of its size is a decompression bomb, not text: the
content of gzip can be 1,000 times as large, of bzip2 and zstd a million times, and of repetitive pages 50 times."""
_HEAD = 2**12
_MAGIC: dict[Compression, bytes] = {
    "gzip": b"\x1f\x8b\x08",
    "zstd": b"\x28\xb5\x2f\xfd",
    "xz": b"\xfd7zXZ\x00",
    "bzip2": b"BZh",
    "lz4": b"\x04\x22\x4d\x18",
}
_ZSTD_SKIPPABLE = re.compile(rb"[\x50-\x5f]\x2a\x4d\x18")
_MAX_DICTIONARY = 2**24
_ZSTD_DICTIONARY = b"\x5d\x2a\x4d\x18"
_ENDINGS: dict[str, Compression] = {
    "gz": "gzip", "gzip": "gzip", "zst": "zstd", "zstd": "zstd", "xz": "xz", "bz2": "bzip2", "lz4": "lz4",
}  # fmt: skip
_FORMATS: tuple[tuple[bytes, Format], ...] = (
    (rb"PAR1", "parquet"),
    (rb"ARROW1|\xff\xff\xff\xff[^\xff]..\x00", "arrow"),
    (rb"WARC/\d\.\d\r?\n", "warc"),
    (rb"%PDF-", "pdf"),
    (rb"(\xef\xbb\xbf)?\s*(\{\s*[\"}]|\[\s*[\[{\]])", "jsonl"),
)
_UNREADABLE = (
    (rb"PARE", "is encrypted Parquet; decrypt it"),
    (rb"FEA1", "is Feather version 1; write it again with a recent version of pandas or pyarrow"),
    (rb"PK\x03\x04|7z\xbc\xaf|Rar!", "is an archive of files; unpack it"),
    (rb"(?s).{257}ustar", "is a tar archive; unpack it"),
    (rb"SQLite format 3\x00", "is an SQLite database; export its table as Parquet, JSON lines or CSV"),
    (rb"ORC|Obj\x01|\x89HDF", "is ORC, Avro or HDF5; convert it to Parquet"),
    (rb"\x80[\x02-\x05].", "is a Python pickle; write it as Parquet, JSON lines or CSV"),
    (rb"version https://git-lfs", "is a Git LFS pointer; fetch the file with `git lfs pull`"),
    (rb"(?i)\s*<(!doctype html|html)", "is an HTML page, perhaps an error message; download the file again"),
)
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_WITHOUT_MARK = (
    (rb"[^\x00]\x00\x00\x00", "utf-32-le"),
    (rb"\x00\x00\x00[^\x00]", "utf-32-be"),
    (rb"[^\x00]\x00[^\x00]\x00", "utf-16-le"),
    (rb"\x00[^\x00]\x00[^\x00]", "utf-16-be"),
)
"""How two ASCII characters look, with which JSON and nearly all CSV begin."""


class DamagedFile(Exception):
    """The rest of a file cannot be read; `reason` is that of the reject."""

    def __init__(self, reason: Literal["truncated", "unreadable"], detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class Gap(NamedTuple):
    """Bytes of a file that were skipped because they cannot be decompressed, and whether they end the file."""

    detail: str
    reason: Literal["truncated", "unreadable"]


class InputFile:
    """A file that is open for reading.

    Attributes:
        compression: by the first bytes; None: the file is not compressed.
    """

    def __init__(self, raw: IO[bytes], uri: str) -> None:
        self._raw, self.uri = raw, uri
        self._bytes_read = 0
        self._start = self._read(_HEAD)
        self.compression = _compression_of(self._start, uri)
        self._rest = self._decompressed()
        self._first: list[bytes | Gap] = []

    def format(self, by_name: Format | None) -> Format | None:
        """The format of the content if its first bytes tell, otherwise the one by the file's name.

        Raises:
            DamagedFile: the content is known, but not read.
        """
        head = self._head()
        for pattern, what in _UNREADABLE:
            if re.match(pattern, head):
                raise DamagedFile("unreadable", f"the file {what}")
        by_content = next((found for pattern, found in _FORMATS if re.match(pattern, head, re.DOTALL)), None)
        if by_content == "jsonl" and by_name == "csv" and not re.match(rb"\s*\{\s*\"[^\"]*\"\s*:", head):
            return by_name
        return by_content or by_name

    def pieces(self) -> Iterator[bytes | Gap]:
        """The decompressed content; damaged parts are gaps, and reading resumes at the next member or frame."""
        self._head()
        return chain(self._first, self._rest)

    def stream(self) -> io.BufferedReader:
        """The decompressed content; reading raises DamagedFile at the first gap."""
        return stream_of(_up_to_gap(self.pieces()))

    def text_stream(self) -> io.BufferedReader:
        """The content as UTF-8, without a byte order mark; what is not text in its encoding becomes invalid UTF-8."""
        encoding, mark = encoding_of(self._head())
        stream = self.stream()
        stream.read(len(mark))
        return stream if encoding == "utf-8" else stream_of(_transcoded(stream, encoding))

    @contextmanager
    def seekable(self) -> Iterator[IO[bytes]]:
        """The content with random access; a compressed file is unpacked to a temporary one."""
        if self.compression is None and self._raw.seekable():
            self._raw.seek(0)
            yield self._raw
            return
        with tempfile.TemporaryFile() as unpacked:
            shutil.copyfileobj(self.stream(), unpacked)
            unpacked.seek(0)
            yield unpacked

    def _head(self) -> bytes:
        """The first bytes of the content."""
        if not self._first:
            size = 0
            for piece in self._rest:
                self._first.append(piece)
                size += len(piece)
                if isinstance(piece, Gap) or size >= _HEAD:
                    break
        return b"".join(piece for piece in self._first if isinstance(piece, bytes))

    def _read(self, size: int) -> bytes:
        try:
            content = self._raw.read(size)
        except Exception as error:  # file systems and their clients have no common base class
            raise DamagedFile("unreadable", _described(error)) from error
        self._bytes_read += len(content)
        return content

    def _chunks(self) -> Iterator[bytes]:
        chunk = self._start
        while chunk:
            yield chunk
            chunk = self._read(_BLOCK)

    def _decompressed(self) -> Iterator[bytes | Gap]:
        try:
            if self.compression is None:
                yield from self._chunks()
            elif self.compression == "lz4":
                yield from self._limited(_lz4(self._chunks()))
            else:
                yield from self._limited(_members(self._chunks(), self.compression))
        except DamagedFile as error:
            yield Gap(str(error), error.reason)

    def _limited(self, pieces: Iterator[bytes | Gap]) -> Iterator[bytes | Gap]:
        size = 0
        for piece in pieces:
            if isinstance(piece, bytes):
                size += len(piece)
                if size > max(_ALLOWED_EXPANSION, _MAX_EXPANSION * self._bytes_read):
                    raise DamagedFile("unreadable", f"{self._bytes_read:,} bytes become more than {size:,}")
            yield piece


@contextmanager
def opened(uri: str) -> Iterator[InputFile]:
    """The file at a path or URL.

    Raises:
        DamagedFile: it cannot be opened.
    """
    try:
        raw = cast("IO[bytes]", fsspec.open(uri, "rb").open())
    except Exception as error:
        raise DamagedFile("unreadable", _described(error)) from error
    with raw:
        yield InputFile(raw, uri)


def format_of_content(uri: str) -> Format | None:
    """The format of a file whose name does not tell it; None: its content does not tell it either.

    Raises:
        InputError: the file cannot be opened, or its content is known but not read.
    """
    try:
        with opened(uri) as file:
            return file.format(None)
    except DamagedFile as error:
        raise InputError(f"{uri}: {error}") from error


def encoding_of(head: bytes) -> tuple[str, bytes]:
    """The Unicode encoding of a text by its first bytes, and its byte order mark."""
    for mark, encoding in _BYTE_ORDER_MARKS:
        if head.startswith(mark):
            return encoding, mark
    return next((encoding for pattern, encoding in _WITHOUT_MARK if re.match(pattern, head, re.DOTALL)), "utf-8"), b""


def stream_of(chunks: Iterator[bytes]) -> io.BufferedReader:
    """Chunks of bytes as one stream."""
    return io.BufferedReader(_Chunks(chunks), _BLOCK)


class _Chunks(io.RawIOBase):
    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._ready = memoryview(chunk)
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count


def _up_to_gap(pieces: Iterator[bytes | Gap]) -> Iterator[bytes]:
    for piece in pieces:
        if isinstance(piece, Gap):
            raise DamagedFile(piece.reason, piece.detail)
        yield piece


def _described(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


# --- Compression -----------------------------------------------------------------------------------------------------


def _compression_of(head: bytes, uri: str) -> Compression | None:
    for compression, magic in _MAGIC.items():
        if head.startswith(magic):
            return compression
    if _ZSTD_SKIPPABLE.match(head):
        return "zstd"
    ending = _ENDINGS.get(uri.rpartition(".")[2].lower())
    # Too short for the first bytes to tell: the name decides, and the end of the file is missing.
    return ending if ending and _MAGIC[ending].startswith(head) else None


_ERRORS = (zlib.error, lzma.LZMAError, zstandard.ZstdError, OSError, EOFError, ValueError, MemoryError)


def _members(chunks: Iterator[bytes], compression: Compression) -> Iterator[bytes | Gap]:
    """The content of all members (frames, streams). After damage, the file is searched for the next one."""
    member = _Member(compression)
    magic = _MAGIC[compression]
    skipped, why, pending, is_started = 0, "", b"", False
    piece_size = _ZSTD_PIECE if compression == "zstd" else _PIECE
    for chunk in chunks:
        is_started = True
        pending += chunk
        while pending:
            if why:
                start = pending.find(magic)
                size = start if start >= 0 else max(len(pending) - len(magic) + 1, 0)
                skipped, pending = skipped + size, pending[size:]
                if start < 0:
                    break
                member = _Member(compression, member.dictionary)
            piece, pending = pending[:piece_size], pending[piece_size:]
            try:
                for content in member.feed(piece):
                    if why:
                        yield Gap(f"{skipped:,} bytes are not {compression} ({why})", "unreadable")
                        skipped, why = 0, ""
                    if content:
                        yield content
            except _ERRORS as error:
                why = why or _described(error)
                skipped, pending = skipped + 1, piece[1:] + pending
                continue
            pending = member.unused + pending
    if why:
        yield Gap(f"the last {skipped + len(pending):,} bytes are not {compression} ({why})", "unreadable")
    elif not member.is_finished:
        yield Gap(f"the last {compression} member is cut off" if is_started else "the file is empty", "truncated")


class _Member:
    """Decompresses one member after another.

    Attributes:
        unused: bytes of the last piece that belong to the next member.
        is_finished: whether a member ends with the last piece.
        dictionary: of all frames; a .warc.zst has it in a skippable frame at its start.
    """

    def __init__(self, compression: Compression, dictionary: zstandard.ZstdCompressionDict | None = None) -> None:
        self._compression, self.dictionary = compression, dictionary
        self._decompressor = self._new_decompressor()
        self.unused, self._header = b"", b""
        self._is_started = self.is_finished = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The content of the next compressed bytes, in pieces of limited size."""
        if self._header or (not self._is_started and data.startswith(_ZSTD_DICTIONARY)):
            self._is_started = True
            self._read_dictionary(data)
            yield b""
            return
        self._is_started = True
        if self.is_finished:
            data = data if self._compression == "bzip2" else data.lstrip(b"\x00")  # padding between members
            if not data:
                self.unused = b""
                yield b""
                return
            self._decompressor = self._new_decompressor()
        yield from self._content(self._decompressor, data)
        self.is_finished = self._decompressor.eof
        self.unused = self._decompressor.unused_data if self.is_finished else b""

    def _content(self, decompressor: Any, data: bytes) -> Iterator[bytes]:
        if self._compression not in ("bzip2", "xz"):
            yield decompressor.decompress(data)
            return
        yield decompressor.decompress(data, _CONTENT)
        while not decompressor.eof and not decompressor.needs_input:
            yield decompressor.decompress(b"", _CONTENT)

    def _read_dictionary(self, data: bytes) -> None:
        self._header += data
        end = 8 + int.from_bytes(self._header[4:8], "little")
        if end > _MAX_DICTIONARY:
            raise ValueError(f"a dictionary of {end:,} bytes")
        self.unused, self.is_finished = b"", len(self._header) >= end
        if self.is_finished:
            content, self.unused, self._header = self._header[8:end], self._header[end:], b""
            if content.startswith(_MAGIC["zstd"]):
                content = zstandard.ZstdDecompressor().decompress(content, max_output_size=2**27)
            self.dictionary = zstandard.ZstdCompressionDict(content)

    def _new_decompressor(self) -> Any:
        if self._compression == "gzip":
            return zlib.decompressobj(wbits=31)
        if self._compression == "xz":
            return lzma.LZMADecompressor()
        if self._compression == "bzip2":
            return bz2.BZ2Decompressor()
        return zstandard.ZstdDecompressor(self.dictionary, max_window_size=2**31).decompressobj()


def _lz4(chunks: Iterator[bytes]) -> Iterator[bytes]:
    stream = pa.CompressedInputStream(pa.PythonFile(stream_of(chunks), "r"), "lz4")
    try:
        while piece := stream.read(_BLOCK):
            yield piece
    except (OSError, pa.ArrowException) as error:
        reason: Literal["truncated", "unreadable"] = "truncated" if "truncated" in str(error).lower() else "unreadable"
        raise DamagedFile(reason, _described(error)) from error


# --- Encodings -------------------------------------------------------------------------------------------------------


def _lone_surrogate(error: UnicodeError) -> tuple[str, int]:
    """Decode what is not text to a character that is not valid UTF-8, so that its row is rejected."""
    assert isinstance(error, UnicodeDecodeError)
    return "\udcff", error.end


codecs.register_error("ml_filter_lone_surrogate", _lone_surrogate)


def _transcoded(stream: IO[bytes], encoding: str) -> Iterator[bytes]:
    decoder = codecs.getincrementaldecoder(encoding)("ml_filter_lone_surrogate")
    while chunk := stream.read(_BLOCK):
        yield decoder.decode(chunk).encode("utf-8", "surrogatepass")
    yield decoder.decode(b"", final=True).encode("utf-8", "surrogatepass")
