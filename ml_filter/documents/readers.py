"""Read one input shard as Arrow tables of documents, whatever its format, and list what cannot be read.

Every table has `id` and `text` first; `url`, `language` and `source` where the format knows them; all other
columns as they came, but for a `text` or `id` in whose place another column was chosen, which is `input_text`,
`input_id`. A reader never stops at bad input: it rejects the piece and goes on where it can.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Any, cast

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import zstandard

from ml_filter.documents import installed
from ml_filter.documents.config import SourceConfig
from ml_filter.documents.output import json_text
from ml_filter.documents.rejects import RejectsLog
from ml_filter.documents.sources import InputShard
from ml_filter.errors import InputError

BATCH_ROWS = 1000
BATCH_BYTES = 8 * 2**20
COUNTED_SHARDS = 1000
"""More shards than this are not opened beforehand only to know how many rows are to come."""
_SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")
Row = tuple[str, dict[str, Any]]
"""A place within the source, for the rejects file, and the row found there."""


def text_id(text: str) -> str:
    """The id of a document that has none: 128 bits of a BLAKE2b hash of its text, as 32 hex digits."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def known_rows(shards: Sequence[InputShard]) -> int | None:
    """How many rows the shards hold, where their formats tell without being read; for progress bars."""
    if len(shards) > COUNTED_SHARDS or any(shard.format != "parquet" for shard in shards):
        return None
    rows = 0
    for shard in shards:
        try:
            with fsspec.open(shard.uri, "rb") as file:
                rows += pq.read_metadata(file).num_rows
        except (pa.ArrowException, OSError):  # reading it will say what is wrong with it
            return None
    return rows


def read_shard(
    shard: InputShard, source: SourceConfig, rejects: RejectsLog, *, with_blank: bool = False
) -> Iterator[pa.Table]:
    """Stream one shard as tables of documents.

    Args:
        with_blank: hand documents that have an id and a null or blank text on, with the text "", instead of rejecting
            them.

    Raises:
        InputError: a column that the source configuration names does not exist.
    """
    if shard.format == "parquet":
        yield from _read_parquet(shard, source, rejects, with_blank)
        return
    rows: Iterable[Row]
    if shard.format == "jsonl":
        rows = read_json_lines(shard, source, rejects)
    elif shard.format == "csv":
        rows = _read_csv(shard, source, rejects)
    elif shard.format == "warc":
        rows = _read_warc(shard, source, rejects)
    elif shard.format == "installed":
        rows = ((row["id"], row) for row in installed.read_installed())
    else:
        rows = _read_hub(shard, source)
    yield from _tables(rows, shard, source, rejects, with_blank)


def _open(shard: InputShard, rejects: RejectsLog) -> IO[bytes] | None:
    try:
        return cast("IO[bytes]", fsspec.open(shard.uri, "rb").open())
    except OSError as error:
        rejects.add(shard.uri, "file", "unreadable", f"{type(error).__name__}: {error}")
        return None


def _tables(
    rows: Iterable[Row], shard: InputShard, source: SourceConfig, rejects: RejectsLog, with_blank: bool
) -> Iterator[pa.Table]:
    batch: list[dict[str, Any]] = []
    size = 0
    for place, row in rows:
        document = _document(place, row, shard, source, rejects, with_blank)
        if document is None:
            continue
        batch.append(document)
        size += len(document["text"])
        if len(batch) >= BATCH_ROWS or size >= BATCH_BYTES:
            yield _table(batch)
            batch, size = [], 0
    if batch:
        yield _table(batch)


def _table(rows: list[dict[str, Any]]) -> pa.Table:
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {}
    for name in names:
        values = [row.get(name) for row in rows]
        try:
            column = pa.array(values)
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):  # mixed types in one column of JSON
            column = None
        if column is None or not _storable(column.type):
            column = pa.array([v if v is None or isinstance(v, str) else json_text(v) for v in values], pa.string())
        columns[name] = column
    return pa.table(columns)


def _storable(kind: pa.DataType) -> bool:
    """Whether Parquet can hold the type: it has no struct without fields, which `{}` would be."""
    children = [kind.field(i).type for i in range(kind.num_fields)]
    return (bool(children) or not pa.types.is_struct(kind)) and all(map(_storable, children))


def _document(
    place: str, row: dict[str, Any], shard: InputShard, source: SourceConfig, rejects: RejectsLog, with_blank: bool
) -> dict[str, Any] | None:
    text = row.get(source.text_column)
    given = row.get(source.id_column or "id")
    others = {own: row[name] for name, own in _others(row, source)}
    if with_blank and given is not None and _is_blank(text) and source.text_column in row:
        return {"id": str(given), "text": "", **others}
    if not isinstance(text, str):
        found = "null" if text is None else type(text).__name__
        rejects.add(shard.uri, place, "missing_text", f"column {source.text_column!r} holds {found}")
        return None
    reason = _unusable(text, source)
    if reason:
        rejects.add(shard.uri, place, *reason)
        return None
    return {"id": text_id(text) if given is None else str(given), "text": text, **others}


def _others(names: Iterable[str], source: SourceConfig) -> list[tuple[str, str]]:
    """The columns that a document keeps beside its `id` and `text`: the name of each in the source, and its own."""
    others = [n for n in names if n != source.text_column and (n != "id" or source.id_column not in (None, "id"))]
    return list(zip(others, names_beside(others, ("id", "text")), strict=True))


def names_beside(names: Sequence[str], ours: Sequence[str]) -> list[str]:
    """Names of columns that are to stand beside ours: one that is named like ours becomes `input_<name>`."""
    taken = set(names)
    free = []
    for name in names:
        new = name
        while new in ours or (new != name and new in taken):
            new = f"input_{new}"
        free.append(new)
    return free


def _is_blank(text: Any) -> bool:
    return text is None or (isinstance(text, str) and not text.strip())


def _unusable(text: str, source: SourceConfig) -> tuple[str, str] | None:
    if not text.strip():
        return "empty_text", ""
    if len(text) * 4 > source.max_text_bytes:
        try:
            size = len(text.encode())
        except UnicodeEncodeError:
            return "invalid_utf8", "lone surrogates"
        if size > source.max_text_bytes:
            return "text_too_long", f"{size:,} bytes, the limit max_text_bytes is {source.max_text_bytes:,}"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "invalid_utf8", "lone surrogates"
    return None


# --- Parquet ---------------------------------------------------------------------------------------------------------


def _read_parquet(shard: InputShard, source: SourceConfig, rejects: RejectsLog, with_blank: bool) -> Iterator[pa.Table]:
    raw = _open(shard, rejects)
    if raw is None:
        return
    with raw:
        try:
            file = pq.ParquetFile(raw, pre_buffer=True)
        except (pa.ArrowException, OSError) as error:
            rejects.add(shard.uri, "file", "unreadable", str(error))
            return
        names = file.schema_arrow.names
        for column in filter(None, (source.text_column, source.id_column)):
            if column not in names:
                raise InputError(f"{shard.uri} has no column {column!r}; it has {', '.join(names)}")
        first = 0
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            try:
                for batch in file.iter_batches(batch_size=BATCH_ROWS, row_groups=[group]):
                    yield _normalise(pa.Table.from_batches([batch]), first, shard, source, rejects, with_blank)
                    first += batch.num_rows
                    rows -= batch.num_rows
            except (pa.ArrowException, OSError) as error:
                rejects.add(shard.uri, f"rows {first} to {first + rows - 1}", "unreadable", str(error))
            first += rows


def _normalise(
    table: pa.Table, first_row: int, shard: InputShard, source: SourceConfig, rejects: RejectsLog, with_blank: bool
) -> pa.Table:
    texts = table.column(source.text_column)
    if not (pa.types.is_string(texts.type) or pa.types.is_large_string(texts.type) or pa.types.is_null(texts.type)):
        raise InputError(f"{shard.uri}: column {source.text_column!r} holds {texts.type}, not text")
    broken = _broken_texts(texts)
    if broken:
        texts = pc.if_else(pa.array([i not in broken for i in range(len(texts))]), texts, None)
    sizes = pc.binary_length(texts.cast(pa.large_string()))
    blank = pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(texts.cast(pa.large_string()))), 0)
    usable = pc.fill_null(pc.and_(pc.invert(blank), pc.less_equal(sizes, source.max_text_bytes)), False)
    id_column = source.id_column or "id"
    if with_blank and id_column in table.column_names:
        kept = pc.and_(pc.fill_null(blank, True), pc.is_valid(table.column(id_column)))
        kept = pc.and_(kept, pa.array([i not in broken for i in range(len(texts))]))
        texts = pc.if_else(kept, "", texts)
        usable = pc.or_(usable, kept)
    if not pc.all(usable).as_py():
        for offset in pc.indices_nonzero(pc.invert(usable)).to_pylist():
            place = f"row {first_row + offset}"
            text = texts[offset].as_py()
            if offset in broken:
                rejects.add(shard.uri, place, "invalid_utf8", broken[offset])
            elif text is None:
                rejects.add(shard.uri, place, "missing_text", f"column {source.text_column!r} holds null")
            else:
                rejects.add(shard.uri, place, *(_unusable(text, source) or ("empty_text", "")))
        table, texts = table.filter(usable), texts.filter(usable)
    if id_column in table.column_names:
        ids = table.column(id_column).cast(pa.string())
        if ids.null_count:
            hashes = pa.array([text_id(text) for text in texts.to_pylist()], pa.string())
            ids = pc.coalesce(ids, hashes)
    else:
        ids = pa.chunked_array([pa.array([text_id(text) for text in texts.to_pylist()], pa.string())])
    others = _others(table.column_names, source)
    return pa.table(
        [ids, texts.cast(pa.string()), *(table.column(name) for name, _ in others)],
        names=["id", "text", *(name for _, name in others)],
    )


def _broken_texts(texts: pa.ChunkedArray) -> dict[int, str]:
    """Which texts are no UTF-8, and what is wrong with them; Parquet files may hold any bytes."""
    try:
        texts.validate(full=True)
    except pa.ArrowInvalid:
        broken = {}
        for offset, value in enumerate(texts.cast(pa.large_binary()).to_pylist()):
            try:
                (value or b"").decode()
            except UnicodeDecodeError as error:
                broken[offset] = f"byte {error.start} of the text: {error.reason}"
        return broken
    return {}


# --- JSON lines ------------------------------------------------------------------------------------------------------


def read_json_lines(shard: InputShard, source: SourceConfig, rejects: RejectsLog) -> Iterator[Row]:
    """The JSON objects of a file, compressed or not, each with its line; other lines are rejected."""
    # A line holds a document and its other columns; beyond this it is skipped without being held in memory.
    limit = _line_limit(source)
    number = 0
    raw = _open(shard, rejects)
    if raw is None:
        return
    with raw:
        stream = _decompressed(raw, shard.uri)
        try:
            while line := stream.readline(limit):
                number += 1
                place = f"line {number}"
                if len(line) >= limit and not line.endswith(b"\n"):
                    size = len(line)
                    while (piece := stream.readline(2**20)) and not piece.endswith(b"\n"):
                        size += len(piece)
                    rejects.add(shard.uri, place, "text_too_long", f"a line of at least {size:,} bytes")
                    continue
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except UnicodeDecodeError as error:
                    rejects.add(shard.uri, place, "invalid_utf8", f"byte {error.start} of the line: {error.reason}")
                    continue
                except (ValueError, RecursionError) as error:  # ValueError: also a number of thousands of digits
                    rejects.add(shard.uri, place, "invalid_json", str(error))
                    continue
                if not isinstance(row, dict):
                    rejects.add(shard.uri, place, "invalid_json", f"a JSON {type(row).__name__}, not an object")
                    continue
                if _SURROGATE_ESCAPE.search(line) and _has_lone_surrogates(row):
                    rejects.add(shard.uri, place, "invalid_utf8", "lone surrogates")
                    continue
                yield place, row
        except (EOFError, zlib.error, zstandard.ZstdError, gzip.BadGzipFile) as error:
            rejects.add(shard.uri, f"after line {number}", "truncated", str(error))


def _line_limit(source: SourceConfig) -> int:
    return 2 * source.max_text_bytes + 2**20


def _has_lone_surrogates(row: dict[str, Any] | list[str]) -> bool:
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


def _decompressed(raw: IO[bytes], uri: str) -> IO[bytes]:
    if uri.endswith(".gz"):
        return cast("IO[bytes]", gzip.open(raw))
    if uri.endswith(".zst"):
        return io.BufferedReader(_WholeZstd(raw))
    return raw


class _WholeZstd(io.RawIOBase):
    """Zstandard frames as a stream that fails, instead of just ending, where the last frame is cut off."""

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw = raw
        self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._ready = memoryview(b"")
        self._started = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            compressed = self._frame.unused_data if self._frame.eof else b""
            compressed = compressed or self._raw.read(2**17)
            if not compressed:
                if self._started and not self._frame.eof:
                    raise EOFError("the last zstandard frame is cut off")
                return 0
            if self._frame.eof:
                self._frame = zstandard.ZstdDecompressor().decompressobj()
            self._started = True
            self._ready = memoryview(self._frame.decompress(compressed))
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count


# --- CSV and TSV -----------------------------------------------------------------------------------------------------


def csv_rows(raw: IO[bytes], uri: str, limit: int) -> Iterator[tuple[str, dict[str, str | None], str | None]]:
    """The rows of a CSV or TSV file, compressed or not, each with its line and, if something is wrong with it, what.

    The first line names the columns; what separates these (comma, semicolon or tab) separates all. Every value is
    text, as the file has no types; an empty one is None.

    Args:
        raw: the file.
        uri: its name.
        limit: most characters of one value; more are likely a quote that is never closed.

    Raises:
        InputError: the first line names no columns.
    """
    csv.field_size_limit(limit)
    stream = io.BufferedReader(_decompressed(raw, uri))  # type: ignore[type-var]
    first = stream.peek(2**13).partition(b"\n")[0].decode(errors="replace")
    with io.TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape", newline="") as text:
        rows = csv.reader(text, delimiter=max(",;\t", key=first.count), strict=True)
        header: list[str] | None = None
        while True:
            place = f"line {rows.line_num + 1}"
            try:
                cells = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                if header is None:
                    raise InputError(f"{uri}, {place}: {error}; the first line has to name the columns") from None
                yield place, {}, str(error)
                continue
            if header is None:
                header = _column_names(cells, uri)
            elif cells:
                problem = f"{len(cells)} values for {len(header)} columns" if len(cells) != len(header) else None
                if _has_lone_surrogates(cells):
                    problem = "not UTF-8"
                yield place, {name: cell or None for name, cell in zip(header, cells, strict=False)}, problem


def _column_names(cells: list[str], uri: str) -> list[str]:
    twice = [name for name, count in Counter(cells).items() if count > 1]
    if _has_lone_surrogates(cells):
        raise InputError(f"{uri} is not UTF-8; save it as such")
    if twice or not any(cells):
        what = f"has the column {twice[0]!r} twice" if any(cells) else "begins with an empty line"
        raise InputError(f"{uri} {what}; its first line has to name the columns")
    return cells


def _read_csv(shard: InputShard, source: SourceConfig, rejects: RejectsLog) -> Iterator[Row]:
    raw = _open(shard, rejects)
    if raw is None:
        return
    named = [source.text_column, *([source.id_column] if source.id_column else [])]
    place = "line 0"
    with raw:
        try:
            for place, row, problem in csv_rows(raw, shard.uri, _line_limit(source)):
                if problem:
                    rejects.add(shard.uri, place, "invalid_utf8" if problem == "not UTF-8" else "invalid_csv", problem)
                    continue
                for column in named:
                    if column not in row:
                        raise InputError(f"{shard.uri} has no column {column!r}; it has {', '.join(row)}")
                yield place, row
        except (EOFError, zlib.error, zstandard.ZstdError, gzip.BadGzipFile) as error:
            rejects.add(shard.uri, f"after {place}", "truncated", str(error))


# --- WARC and WET ----------------------------------------------------------------------------------------------------


def _read_warc(shard: InputShard, source: SourceConfig, rejects: RejectsLog) -> Iterator[Row]:
    from fastwarc.warc import ArchiveIterator, WarcRecordType

    last = 0
    headless = False
    kinds = WarcRecordType.response | WarcRecordType.conversion | WarcRecordType.resource
    raw = _open(shard, rejects)
    if raw is None:
        return
    with raw:
        try:
            for record in ArchiveIterator(raw, record_types=kinds):
                last = record.stream_pos
                place = f"record {record.record_id} at byte {last}"
                headless = not record.headers.get("Content-Length")
                if headless:  # FastWARC takes a header that is cut off for that of an empty record
                    rejects.add(shard.uri, place, "truncated", "the record's header has no length")
                    continue
                if record.content_length > 4 * source.max_text_bytes:
                    rejects.add(shard.uri, place, "text_too_long", f"a record of {record.content_length:,} bytes")
                    continue
                body = record.reader.read()
                if len(body) < record.content_length:
                    detail = f"{len(body):,} of {record.content_length:,} bytes"
                    rejects.add(shard.uri, place, "truncated", detail)
                    return
                row = _from_record(record, body, place, shard, rejects)
                if row is not None:
                    text = row.pop("text")
                    yield place, {**row, source.text_column: text}
        except Exception as error:  # FastWARC's stream errors have no common base
            rejects.add(shard.uri, f"after byte {last}", "truncated", f"{type(error).__name__}: {error}")
            return
        if not headless and (problem := _cut_off_after(raw, last)):
            rejects.add(shard.uri, f"after byte {last}", "truncated", problem)


def _from_record(record: Any, body: bytes, place: str, shard: InputShard, rejects: RejectsLog) -> dict[str, Any] | None:
    from fastwarc.warc import WarcRecordType

    headers = record.headers
    common = {
        "id": record.record_id,
        "url": headers.get("WARC-Target-URI"),
        "date": headers.get("WARC-Date"),
    }
    if record.record_type == WarcRecordType.conversion:
        try:
            text = body.decode("utf-8")
        except UnicodeDecodeError as error:
            rejects.add(shard.uri, place, "invalid_utf8", f"byte {error.start}: {error.reason}")
            return None
        return {**common, "text": text, "language": headers.get("WARC-Identified-Content-Language")}
    import trafilatura

    content_type = record.http_content_type or ""
    if content_type and not content_type.startswith(("text/", "application/xhtml")):
        rejects.add(shard.uri, place, "no_main_text", f"content type {content_type}")
        return None
    main_text: str | None = trafilatura.extract(body, url=common["url"]) if body.strip() else None
    if not main_text:
        rejects.add(shard.uri, place, "no_main_text", f"{len(body):,} bytes of {content_type or 'unknown type'}")
        return None
    return {**common, "text": main_text}


def _cut_off_after(raw: IO[bytes], position: int) -> str | None:
    """Whether the file ends inside a record after `position`, which FastWARC takes for the end of the file."""
    raw.seek(position)
    block = raw.read(2**20)
    if not block.startswith(b"\x1f\x8b"):
        return _plain_cut_off_after(raw, position)
    member = zlib.decompressobj(wbits=31)
    while block:
        try:
            member.decompress(block)
        except zlib.error as error:
            return str(error)
        if member.eof:
            block = member.unused_data or raw.read(2**20)
            if block:
                member = zlib.decompressobj(wbits=31)
        else:
            block = raw.read(2**20)
    return None if member.eof else "the archive ends inside a record"


def _plain_cut_off_after(raw: IO[bytes], position: int) -> str | None:
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


# --- Hugging Face Hub ------------------------------------------------------------------------------------------------


def _read_hub(shard: InputShard, source: SourceConfig) -> Iterator[Row]:
    from ml_filter.documents.hub import open_data_set

    name, _, revision = shard.uri.removeprefix("hf://datasets/").partition("@")
    number, parts = shard.part
    data = open_data_set(name, revision or None, source)
    if parts > 1:
        data = data.shard(num_shards=parts, index=number)
    for position, row in enumerate(data):
        yield f"row {position}", row
