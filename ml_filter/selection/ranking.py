"""Rank documents and cut where a budget is used up, exactly, in memory that does not grow with their number.

What is measured of each shard lies in a file beside the output (41 bytes a document), in the order of the shard. The
documents that may be kept are sorted in pieces, the pieces written to one file (48 bytes a document) and merged in
blocks. Memory holds a block of each piece and about 400 bytes for each value of the quota's columns.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ml_filter.documents.readers import InputShard
from ml_filter.documents.rejects import RejectsLog
from ml_filter.documents.writer import ShardWriter
from ml_filter.errors import InputError
from ml_filter.progress import Progress
from ml_filter.selection.corpus import Corpus
from ml_filter.selection.measure import MEASURED, Measure

ORDER = ("cell", "rank", "high", "low", "tokens", "place")
RANKED = np.dtype([(name, "u8") for name in ORDER])
"""A document in the order of the ranking. `place`, of shard and row, settles only what has the same id and score."""
_VALUES = pa.schema([("cell", pa.uint64()), ("value", pa.string())])
_PIECE = 2**16
_LEAST = 2**6
_ROW_BITS = 40


class Measurements:
    """What is measured of each shard, in files that a killed run finds again."""

    def __init__(self, directory: Path, corpus: Corpus, measure: Measure) -> None:
        self.corpus, self.measure = corpus, measure
        self._directory = directory

    def add(self, shard: InputShard, bar: Progress | None = None) -> None:
        """Measure a shard, unless that was done."""
        path = self._path(shard)
        rows = path.stat().st_size // MEASURED.itemsize if path.exists() else 0
        if path.exists():
            if bar is not None:
                bar.advance(rows)
            return
        names: dict[int, str] = {}
        temporary = path.with_suffix(".tmp")
        with temporary.open("wb") as file:
            for first, table in self.corpus.tables(shard, RejectsLog(), self.measure.needed):
                made, found = self.measure(table, shard.uri)
                file.write(made.tobytes())
                names |= found
                rows = first + table.num_rows
                if bar is not None:
                    bar.advance(table.num_rows)
            file.flush()
            os.fsync(file.fileno())
        columns = [pa.array(list(names), pa.uint64()), pa.array(list(names.values()), pa.string())]
        with ShardWriter(path.with_suffix(".values"), _VALUES) as values:
            values.write(pa.table(columns, schema=_VALUES))
        os.replace(temporary, path)

    def open(self, shard: InputShard) -> OpenMeasurements:
        """Read the measurements of a shard beside its documents; measures it where that was not done."""
        self.add(shard)
        return OpenMeasurements(self._path(shard), shard.uri)

    def blocks(self, shard: InputShard) -> Iterator[tuple[int, NDArray[np.void]]]:
        """The measurements of a shard in bounded blocks, each with the number of its first row."""
        first = 0
        with self._path(shard).open("rb") as file:
            while len(block := np.fromfile(file, MEASURED, _PIECE)):
                yield first, block
                first += len(block)

    def values(self, shard: InputShard) -> pa.Table:
        """`cell` and `value`: the values of the quota's columns in a shard."""
        with pq.ParquetFile(self._path(shard).with_suffix(".values")) as file:
            return file.read()

    def _path(self, shard: InputShard) -> Path:
        return self._directory / f"{shard.name}.measured"


class OpenMeasurements:
    """The measurements of one shard, asked for in the order of its documents."""

    def __init__(self, path: Path, uri: str) -> None:
        self._path, self._uri = path, uri
        self._file: BinaryIO

    def __enter__(self) -> Self:
        self._file = self._path.open("rb")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def rows(self, first: int, count: int) -> NDArray[np.void]:
        """Those of `count` rows from row `first` on.

        Raises:
            InputError: the shard has other rows than when it was measured.
        """
        self._file.seek(first * MEASURED.itemsize)
        found: NDArray[np.void] = np.fromfile(self._file, MEASURED, count)
        if len(found) < count:
            raise InputError(f"{self._uri} changed while it was read; delete the output and start over")
        return found


def at_or_before(rows: NDArray[np.void], bounds: NDArray[np.void], order: Sequence[str] = ORDER) -> NDArray[np.bool_]:
    """Whether each row stands at its bound or before it; `bounds` has one for each row, or one for all."""
    before = np.zeros(len(rows), dtype=np.bool_)
    level = ~before
    for name in order:
        before |= level & (rows[name] < bounds[name])
        level &= rows[name] == bounds[name]
    return before | level


def ranked(measured: NDArray[np.void], shard: int, first: int) -> NDArray[np.void]:
    """Measured rows of shard number `shard`, from row `first` on, as they stand in the ranking."""
    rows = np.empty(len(measured), RANKED)
    for name in ORDER[:-1]:
        rows[name] = measured[name]
    start = (shard << _ROW_BITS) + first
    rows["place"] = np.arange(start, start + len(rows), dtype=np.uint64)
    return rows


class SortedPieces:
    """Rows of any number in the order of the ranking: sorted in pieces, written to one file, merged when read.

    Args:
        piece: rows of a piece. While pieces are merged twice as many are in memory, but at least 64 of each.
    """

    def __init__(self, path: Path, piece: int = _PIECE) -> None:
        self._path, self._piece = path, piece
        self._lengths: list[int] = []
        self._pending: list[NDArray[np.void]] = []
        self._file: BinaryIO

    def __enter__(self) -> Self:
        self._file = self._path.open("w+b")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._path.unlink()

    def add(self, rows: NDArray[np.void]) -> None:
        """Add rows in the order of their places; not many more at once than a piece holds."""
        self._pending.append(rows)
        if sum(map(len, self._pending)) >= self._piece:
            self._flush()

    def _flush(self) -> None:
        piece = _sorted(np.concatenate(self._pending))
        self._pending = []
        self._file.write(piece.tobytes())
        self._lengths.append(len(piece))

    def merged(self) -> Iterator[NDArray[np.void]]:
        """All rows, in order, in blocks."""
        if self._pending:
            self._flush()
        self._file.flush()
        size = max(_LEAST, 2 * self._piece // max(len(self._lengths), 1))
        starts = np.cumsum([0, *self._lengths]).tolist()
        pieces = [_Piece(self._file, start, end, size) for start, end in pairwise(starts)]
        while pieces:
            for piece in pieces:
                piece.fill()
            # Up to the first of the last rows in memory nothing can still come from the file.
            bounds = [piece.rows[-1:] for piece in pieces if piece.left]
            bound = _sorted(np.concatenate(bounds))[0] if bounds else None
            yield _sorted(np.concatenate([piece.take(bound) for piece in pieces]))
            pieces = [piece for piece in pieces if piece.left or len(piece.rows)]


class _Piece:
    """A sorted piece of the file, of which some rows are in memory."""

    def __init__(self, file: BinaryIO, start: int, end: int, size: int) -> None:
        self._file, self._next, self._end, self._size = file, start, end, size
        self.rows: NDArray[np.void] = np.empty(0, RANKED)

    @property
    def left(self) -> int:
        """Rows that are not in memory yet."""
        return self._end - self._next

    def fill(self) -> None:
        count = min(self._size - len(self.rows), self.left)
        if count > 0:
            self._file.seek(self._next * RANKED.itemsize)
            self.rows = np.concatenate([self.rows, np.fromfile(self._file, RANKED, count)])
            self._next += count

    def take(self, bound: NDArray[np.void] | None) -> NDArray[np.void]:
        count = len(self.rows) if bound is None else int(at_or_before(self.rows, bound).sum())
        taken, self.rows = self.rows[:count], self.rows[count:]
        return taken


def _sorted(rows: NDArray[np.void]) -> NDArray[np.void]:
    return rows[np.lexsort([rows[name] for name in reversed(ORDER)])]
