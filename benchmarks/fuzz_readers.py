"""Do the readers survive damaged files, and lose nothing?

Small valid files of each format are changed at random: bytes flipped, cut out, repeated, spliced with another file, and
the whole compressed or stored in another encoding. Each must be read within the time limit, with no other exceptions
than the project's own. Texts must be storable and not blank, ids unique after `UniqueIds`, and rows and rejects as many
as the rows of the file, where the format tells how many it has. Prints the number of inputs and of each outcome, and
fails with the first inputs that break a rule, which are written to --keep.

    python benchmarks/fuzz_readers.py [--inputs 1000] [--seed 0] [--readers jsonl csv ...]
"""

from __future__ import annotations

import argparse
import bz2
import gzip
import io
import json
import lzma
import random
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from loguru import logger

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.readers import InputShard, read_shard
from ml_filter.documents.rejects import DAMAGE, RejectsLog
from ml_filter.documents.tables import concat_tables
from ml_filter.documents.unique import UniqueIds
from ml_filter.errors import MlFilterError

ROWS = [
    {
        "id": f"d{i}",
        "text": f"text {i} of a dätaset\n" * (i + 1),
        "url": f"https://a.org/{i}",
        "n": i,
        "tags": ["x", "y"],
    }
    for i in range(6)
]
SOURCE = SourceConfig(extractor="text", max_text_bytes=10_000)
SECONDS = 10
FILES = fsspec.filesystem("memory")


def _table() -> pa.Table:
    table = pa.Table.from_pylist(ROWS)
    return table.append_column("kind", table["url"].dictionary_encode()).append_column(
        "view", table["url"].cast(pa.string_view())
    )


def jsonl(chance: random.Random) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=chance.random() < 0.5) + "\n" for row in ROWS).encode()


def json_array(chance: random.Random) -> bytes:
    value = chance.choice([ROWS, {"data": ROWS}])
    return json.dumps(value, indent=chance.choice([None, 1, 4]), ensure_ascii=False).encode()


def csv(chance: random.Random) -> bytes:
    separator = chance.choice(",;\t")
    rows = ["id\ttext\tn", *(f'{row["id"]}\t"{row["text"]}"\t{row["n"]}' for row in ROWS)]
    return "\n".join(rows).replace("\t", separator).encode()


def parquet(chance: random.Random) -> bytes:
    file = io.BytesIO()
    compression = chance.choice(["none", "snappy", "zstd"])
    pq.write_table(_table(), file, row_group_size=chance.choice([2, 10]), compression=compression)
    return file.getvalue()


def arrow(chance: random.Random) -> bytes:
    file, table = io.BytesIO(), _table()
    with chance.choice([pa.ipc.new_stream, pa.ipc.new_file])(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return file.getvalue()


def _record(kind: str, number: int, body: bytes, content_type: str) -> bytes:
    head = (
        f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Record-ID: <urn:uuid:{number}>\r\nWARC-Target-URI: http://a.org/{number}\r\n"
        f"Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body + b"\r\n\r\n"


def warc(chance: random.Random) -> bytes:
    records = []
    for number, row in enumerate(ROWS):
        html = f"<html><body><p>{row['text']}</p></body></html>"
        charset = chance.choice(["utf-8", "iso-8859-1", "utf-16", "x-unknown"])
        body = html.encode(charset if charset != "x-unknown" else "utf-8")
        head = f"HTTP/1.1 200 OK\r\nContent-Type: {chance.choice(['text/html', 'TEXT/PLAIN'])}; charset={charset}\r\n"
        if chance.random() < 0.3:
            body, head = gzip.compress(body), head + "Content-Encoding: gzip\r\n"
        if chance.random() < 0.3:
            body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
            head += "Transfer-Encoding: chunked\r\n"
        record = _record("response", number, head.encode() + b"\r\n" + body, "application/http; msgtype=response")
        records.append(record)
    each = chance.choice([bytes, gzip.compress, zstandard.compress])
    return b"".join(map(each, records))


def wet(chance: random.Random) -> bytes:
    each = chance.choice([bytes, gzip.compress])
    return b"".join(each(_record("conversion", n, row["text"].encode(), "text/plain")) for n, row in enumerate(ROWS))


READERS: dict[str, tuple[Callable[[random.Random], bytes], str]] = {
    "jsonl": (jsonl, ".jsonl"),
    "json_array": (json_array, ".json"),
    "csv": (csv, ".csv"),
    "parquet": (parquet, ".parquet"),
    "arrow": (arrow, ".arrow"),
    "warc": (warc, ".warc"),
    "wet": (wet, ".wet"),
}
COMPRESSIONS = {
    ".gz": lambda content: gzip.compress(content, 1),
    ".zst": zstandard.compress,
    ".xz": lambda content: lzma.compress(content, preset=0),
    ".bz2": bz2.compress,
}


def flip(content: bytearray, chance: random.Random, other: bytes) -> None:
    for _ in range(chance.choice([1, 1, 3, 20])):
        content[chance.randrange(len(content))] = chance.randrange(256)


def cut(content: bytearray, chance: random.Random, other: bytes) -> None:
    del content[chance.randrange(len(content)) :]


def delete(content: bytearray, chance: random.Random, other: bytes) -> None:
    start = chance.randrange(len(content))
    del content[start : start + chance.choice([1, 10, 100])]


def repeat(content: bytearray, chance: random.Random, other: bytes) -> None:
    start = chance.randrange(len(content))
    content[start:start] = content[start : start + chance.choice([1, 50, 500])] * chance.choice([1, 3])


def splice(content: bytearray, chance: random.Random, other: bytes) -> None:
    content[chance.randrange(len(content)) :] = other[chance.randrange(len(other)) :]


def insert(content: bytearray, chance: random.Random, other: bytes) -> None:
    piece = chance.choice(
        [b"\x00", b"\n", b'"', b"{", b"[", b"\\ud800", b"\xff\xfe", b"\xed\xa0\x80", b"9" * 5000, b"-1", b"NaN"]
    )
    start = chance.randrange(len(content))
    content[start:start] = piece


PIECES = (b"\x00", b"\n", b'"', b"{", b"[", b"\\ud800", b"\xff\xfe", b"\xed\xa0\x80", b"9" * 5000, b"-1", b"NaN")
MUTATIONS = (flip, cut, delete, repeat, splice, insert)


def make(reader: str, chance: random.Random) -> tuple[str, bytes, bool]:
    """The name and content of a file, and whether it is undamaged."""
    write, ending = READERS[reader]
    content = bytearray(write(chance))
    changes = chance.choice([0, 1, 1, 2])
    if reader in ("jsonl", "json_array", "csv") and chance.random() < 0.1:
        content[:] = content.decode().encode(chance.choice(["utf-16", "utf-16-le", "utf-32", "utf-8-sig"]))
    compression = "" if reader in ("warc", "wet") else chance.choice([*COMPRESSIONS, *[""] * 8])
    damages_compressed = chance.random() < 0.5
    if compression and damages_compressed:
        content[:] = COMPRESSIONS[compression](bytes(content))
    for _ in range(changes):
        if content:
            chance.choice(MUTATIONS)(content, chance, write(chance))
    if compression and not damages_compressed:
        content[:] = COMPRESSIONS[compression](bytes(content))
    name = f"a{ending}{chance.choice([compression, compression, ''])}"
    return name, bytes(content), changes == 0


def rows_in(reader: str, name: str, content: bytes) -> int | None:
    """The number of rows of a file that may be damaged, if its format tells."""
    if reader == "parquet" and content.startswith(b"PAR1"):
        try:
            return int(pq.ParquetFile(io.BytesIO(content)).metadata.num_rows)
        except Exception:
            return None
    lines = [line for line in content.splitlines(keepends=False) if line.strip()] if reader == "jsonl" else []
    is_plain = name == "a.jsonl" and content.startswith(b'{"i') and b"\r" not in content
    if is_plain and lines[0].rstrip()[-1:] not in b"{[,:":
        return sum(1 for line in content.split(b"\n") if line.strip())
    return None


def with_own_ids(tables: list[pa.Table], rejects: RejectsLog) -> list[pa.Table]:
    """The documents with ids of their own; a repeated one counts as a reject."""
    result = []
    with UniqueIds() as ids:
        for table in tables:
            resolved, is_new = ids.resolve(table, ["a"] * table.num_rows)
            result.append(resolved.filter(pa.array(is_new, pa.bool_())))
            rejects.counts["duplicate_id"] += is_new.count(False)
    names = [document_id for table in result for document_id in table["id"].to_pylist()]
    assert len(set(names)) == len(names), "an id twice"
    return result


def check(reader: str, name: str, content: bytes, is_whole: bool, deep: bool) -> str:
    """Read a file and check the rules; returns the outcome."""
    uri = f"memory://fuzz/{name}"
    FILES.pipe("/fuzz/" + name, content)
    shard_format = {"json_array": "jsonl", "wet": "warc"}.get(reader, reader)
    rejects = RejectsLog()
    try:
        tables = list(read_shard(InputShard(uri, shard_format, "a"), SOURCE, rejects))
        if deep:
            tables = with_own_ids(tables, rejects)
    except MlFilterError as error:
        assert "\n" not in str(error), "an error of several lines"
        return type(error).__name__
    read = sum(table.num_rows for table in tables)
    total = read + rejects.counts.total()
    for table in tables:
        assert table.num_rows or deep, "an empty table"
        for document_id, text in zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True):
            assert document_id and isinstance(document_id, str), "no id"
            assert isinstance(text, str) and text.strip() and text.encode(), "no text"
    if is_whole:
        assert read == len(ROWS), f"{read} rows of an undamaged file, rejects {dict(rejects.counts)}"
    elif (rows := rows_in(reader, name, content)) is not None and not rejects.counts.keys() & set(DAMAGE):
        assert total == rows, f"{read} rows and {dict(rejects.counts)}, but the file has {rows}"
    if deep and tables:
        pq.write_table(concat_tables(tables), pa.BufferOutputStream())
    return (
        "rows and rejects" if read and rejects.total else "rows" if read else "rejects" if rejects.total else "nothing"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=1000, help="for each reader")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="for each reader, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--readers", nargs="+", choices=READERS, default=list(READERS))
    parser.add_argument(
        "--keep", type=Path, default=Path("fuzz_failures"), help="directory for inputs that break a rule"
    )
    options = parser.parse_args()
    logger.remove()
    signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(TimeoutError(f"more than {SECONDS} s")))
    failures = 0
    for reader in options.readers:
        outcomes: Counter[str] = Counter()
        check(reader, *make(reader, random.Random(0)), deep=True)  # noqa: S311  # imports take time
        started, slowest = time.monotonic(), 0.0
        for number in range(options.inputs):
            if time.monotonic() - started > options.seconds:
                break
            seed = f"{options.seed} {reader} {number}"
            name, content, is_whole = make(reader, random.Random(seed))  # noqa: S311
            begun = time.monotonic()
            signal.alarm(SECONDS)
            try:
                outcomes[check(reader, name, content, is_whole, deep=number % 10 == 0)] += 1
            except Exception:
                outcomes["FAILED"] += 1
                failures += 1
                if outcomes["FAILED"] <= 5:
                    options.keep.mkdir(exist_ok=True)
                    (options.keep / f"{reader}-{number}-{name}").write_bytes(content)
                    print(f"{reader} {number} {name}: {traceback.format_exc(limit=-3)}", flush=True)
            finally:
                signal.alarm(0)
                slowest = max(slowest, time.monotonic() - begun)
        seconds = time.monotonic() - started
        listed = ", ".join(f"{outcome} {count:,}" for outcome, count in sorted(outcomes.items()))
        print(
            f"{reader}: {outcomes.total():,} inputs in {seconds:.0f} s, slowest {slowest:.2f} s: {listed}", flush=True
        )
    sys.exit(failures > 0)


if __name__ == "__main__":
    main()
