"""Rank documents and find where a budget cuts the ranking: exactly, in memory that does not grow with their number.

Documents are ranked within each cell: one combination of values of the quota's columns (without a quota, the only
cell). Three ideas keep memory flat:

- External sort: documents are sorted in pieces, which are written to one file (48 bytes per document) and merged in
  blocks. Memory holds one block of each piece.
- Prefix cut: a budget keeps a prefix of each cell's ranking, so the last kept document of each cell describes the whole
  selection. No list of ids is needed: a document is kept if it does not rank behind the cut of its cell.
- One ordered pass: the cuts are found while the merged ranking streams by, with one running sum per cell. Memory holds
  about 400 bytes per cell.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ml_filter.selection.config import FilterConfig

ORDER = ("cell", "rank", "high", "low", "tokens", "place")
RANKED = np.dtype([(name, "u8") for name in ORDER])
"""A document in the ranking, which sorts by these fields in this order.

`cell` is a hash of its values, `rank` is lower for a better document, `high` and `low` are a hash of its id that breaks
ties, and `place` (shard and row) orders documents with the same id and score.
"""
_PIECE_ROWS = 2**16
_MIN_BLOCK_ROWS = 2**6
_ROW_BITS = 40
_TOTALS = np.dtype([("cell", "u8"), ("documents", "i8"), ("tokens", "i8")])
_RESULTS = ("quota", "budget", "kept_documents", "kept_tokens")
_LARGEST_CELLS = 100
_SIGN = np.uint64(2**63)


# --- The order -------------------------------------------------------------------------------------------------------


def rank_of(values: NDArray[np.float64]) -> NDArray[np.uint64]:
    """Integers in exactly the opposite order of the values: the highest value gets the lowest rank."""
    # IEEE 754 floats order like their bits as integers, if negative ones are inverted. Adding 0.0 turns -0.0 into 0.0.
    bits = (values + 0.0).view(np.uint64)
    ascending = np.where(bits & _SIGN, ~bits, bits | _SIGN)
    return ~ascending


def values_of(ranks: NDArray[np.uint64]) -> NDArray[np.float64]:
    """The values that `rank_of` turned into these ranks."""
    ascending = ~ranks
    bits = np.where(ascending & _SIGN, ascending & ~_SIGN, ~ascending)
    return bits.view(np.float64)


def cell_of(value: str) -> int:
    """A 64-bit hash of a value of the quota's columns."""
    return int.from_bytes(hashlib.blake2b(value.encode(), digest_size=8).digest(), "little")


def ranked(measured: NDArray[np.void], shard: int, first_row: int) -> NDArray[np.void]:
    """Consecutive measured rows of a shard, from row `first_row`, as entries of the ranking."""
    rows = np.empty(len(measured), RANKED)
    for name in ORDER[:-1]:
        rows[name] = measured[name]
    start = (shard << _ROW_BITS) + first_row
    rows["place"] = np.arange(start, start + len(rows), dtype=np.uint64)
    return rows


def at_or_before(rows: NDArray[np.void], bounds: NDArray[np.void]) -> NDArray[np.bool_]:
    """Whether each row ranks at its bound or before it; `bounds` has one entry per row, or one for all rows."""
    before = np.zeros(len(rows), dtype=np.bool_)
    tied = ~before
    for name in ORDER:
        before |= tied & (rows[name] < bounds[name])
        tied &= rows[name] == bounds[name]
    return before | tied


def _sorted(rows: NDArray[np.void]) -> NDArray[np.void]:
    return rows[np.lexsort([rows[name] for name in reversed(ORDER)])]


# --- External sort ---------------------------------------------------------------------------------------------------


class ExternalSort:
    """Sorts any number of rows: in pieces, which are written to one file and merged when read.

    Args:
        piece_rows: rows per piece. Merging holds twice as many rows in memory, but at least 64 of each piece.
    """

    def __init__(self, path: Path, piece_rows: int = _PIECE_ROWS) -> None:
        self._path, self._piece_rows = path, piece_rows
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
        """Add rows, not many more at a time than a piece has."""
        self._pending.append(rows)
        if sum(map(len, self._pending)) >= self._piece_rows:
            self._flush()

    def _flush(self) -> None:
        piece = _sorted(np.concatenate(self._pending))
        self._pending = []
        self._file.write(piece.tobytes())
        self._lengths.append(len(piece))

    def merged(self) -> Iterator[NDArray[np.void]]:
        """All rows in order, in blocks."""
        if self._pending:
            self._flush()
        self._file.flush()
        block = max(_MIN_BLOCK_ROWS, 2 * self._piece_rows // max(len(self._lengths), 1))
        offsets = np.cumsum([0, *self._lengths]).tolist()
        pieces = [_Piece(self._file, start, end, block) for start, end in pairwise(offsets)]
        while pieces:
            for piece in pieces:
                piece.fill()
            # Rows still in the file come after the last row in memory of their piece. So everything up to the first of
            # these last rows is complete and can be sorted and returned.
            bounds = [piece.rows[-1:] for piece in pieces if piece.unread]
            bound = _sorted(np.concatenate(bounds))[0] if bounds else None
            yield _sorted(np.concatenate([piece.take(bound) for piece in pieces]))
            pieces = [piece for piece in pieces if piece.unread or len(piece.rows)]


class _Piece:
    """A sorted piece of the file; `rows` are in memory, `unread` rows are not yet."""

    def __init__(self, file: BinaryIO, start: int, end: int, block: int) -> None:
        self._file, self._next, self._end, self._block = file, start, end, block
        self.rows: NDArray[np.void] = np.empty(0, RANKED)

    @property
    def unread(self) -> int:
        return self._end - self._next

    def fill(self) -> None:
        count = min(self._block - len(self.rows), self.unread)
        if count > 0:
            self._file.seek(self._next * RANKED.itemsize)
            self.rows = np.concatenate([self.rows, np.fromfile(self._file, RANKED, count)])
            self._next += count

    def take(self, bound: NDArray[np.void] | None) -> NDArray[np.void]:
        count = len(self.rows) if bound is None else int(at_or_before(self.rows, bound).sum())
        taken, self.rows = self.rows[:count], self.rows[count:]
        return taken


# --- Budgets and cuts ------------------------------------------------------------------------------------------------


class Totals:
    """Counts the documents and tokens of each cell."""

    def __init__(self) -> None:
        self._parts: list[NDArray[np.void]] = [np.empty(0, _TOTALS)]

    def add(self, rows: NDArray[np.void]) -> None:
        """Count entries of the ranking."""
        part = np.zeros(len(rows), _TOTALS)
        part["cell"], part["documents"], part["tokens"] = rows["cell"], 1, rows["tokens"]
        self._parts.append(_sum_by_cell(part))
        if sum(map(len, self._parts[1:])) >= len(self._parts[0]):  # so that each row is merged a few times at most
            self._parts = [self.summed()]

    def summed(self) -> NDArray[np.void]:
        """`cell`, `documents`, `tokens`, ordered by cell."""
        return _sum_by_cell(np.concatenate(self._parts))


def _sum_by_cell(rows: NDArray[np.void]) -> NDArray[np.void]:
    cells, inverse = np.unique(rows["cell"], return_inverse=True)
    totals = np.zeros(len(cells), _TOTALS)
    totals["cell"] = cells
    for name in ("documents", "tokens"):
        np.add.at(totals[name], inverse, rows[name])
    return totals


class Cells:
    """The cells of a quota: what each has, may keep and keeps. Without a quota there is one cell.

    Attributes:
        cell: hash of each cell's value, ascending.
        value: the value, as text.
        documents, tokens: what can be kept.
        listed: False if the quota names other values, so that this one gets nothing.
        quota: what the cell should get: tokens of a token budget, otherwise documents.
        budget: the quota after redistributing what other cells have too few documents for.
        kept_documents, kept_tokens: what is kept.
        cut: the last kept document; undefined if none is kept.
    """

    def __init__(self, totals: NDArray[np.void], named: NDArray[np.uint64]) -> None:
        empty = np.zeros(len(named), _TOTALS)
        empty["cell"] = named
        totals = _sum_by_cell(np.concatenate([totals, empty]))
        self.cell: NDArray[np.uint64] = totals["cell"].copy()
        self.documents: NDArray[np.int64] = totals["documents"].copy()
        self.tokens: NDArray[np.int64] = totals["tokens"].copy()
        self.listed: NDArray[np.bool_] = np.ones(len(self.cell), np.bool_)
        self.quota, self.budget, self.kept_documents, self.kept_tokens = np.zeros((4, len(self.cell)), np.int64)
        self.cut: NDArray[np.void] = np.zeros(len(self.cell), RANKED)
        self.value = pa.array([""] * len(self.cell), pa.string())
        self._used: NDArray[np.int64] = np.zeros(len(self.cell), np.int64)

    def __len__(self) -> int:
        return len(self.cell)

    def _index(self, cells: NDArray[np.uint64]) -> NDArray[np.int64]:
        """The index of each cell; an arbitrary index for an unknown one."""
        return np.minimum(np.searchsorted(self.cell, cells), len(self) - 1)

    def set_values(self, tables: Iterable[pa.Table]) -> None:
        """Set the value of each cell from tables of `cell` and `value`, in which a cell may occur several times."""
        if not len(self):
            return
        has_value = np.zeros(len(self), np.bool_)
        indices: list[NDArray[np.int64]] = []
        values: list[pa.Array] = []
        for table in tables:
            cells = table["cell"].to_numpy()
            index = self._index(cells)
            is_new = (self.cell[index] == cells) & ~has_value[index]
            has_value[index[is_new]] = True
            indices.append(index[is_new])
            values += table["value"].filter(pa.array(is_new)).chunks
        order = np.argsort(np.concatenate(indices), kind="stable")
        self.value = pa.chunked_array(values, pa.string()).take(pa.array(order)).combine_chunks()

    def set_budgets(self, config: FilterConfig) -> None:
        """Set quota and budget of each cell."""
        quota = config.quota
        if config.keep_fraction is not None:
            fractions = np.full(len(self), config.keep_fraction)
            for value, fraction in (quota.fractions if quota else {}).items():
                fractions[self.cell == cell_of(value)] = fraction
            kept = map(_share_rounded_down, self.documents.tolist(), fractions.tolist())
            self.quota = np.fromiter(kept, np.int64, len(self))
            self.budget = self.quota.copy()
            return
        assert config.token_budget is not None
        weights = np.ones(len(self))
        if quota is not None and quota.named is not None:
            weights = np.zeros(len(self))
            for value, weight in quota.named.items():
                weights[self.cell == cell_of(value)] = weight
            self.listed = np.isin(self.cell, [cell_of(value) for value in quota.named])
        elif quota is not None and quota.split == "proportional":
            weights = self.tokens.astype(np.float64)
        self.quota = weights.astype(np.int64) if quota and quota.tokens else in_proportion(config.token_budget, weights)
        self.budget = self.quota.copy()
        if quota is None or quota.redistributes:
            self.budget = redistributed(config.token_budget, self.tokens, weights)

    def fill(self, rows: NDArray[np.void], *, by_tokens: bool) -> None:
        """Fill the budgets with the next block of the ranking, in which the rows of a cell are adjacent.

        A row fits if the running sum of its cell, including the row, is within the budget. Rows that do not fit count
        as well, so the sum never falls: after the first row that does not fit, no later row of the cell does. The kept
        rows are therefore a prefix, and no document is passed over in favour of a worse one.
        """
        if not len(rows):
            return
        tokens = rows["tokens"].astype(np.int64)
        size = tokens if by_tokens else np.ones_like(tokens)
        cells, starts, counts = np.unique(rows["cell"], return_index=True, return_counts=True)
        index, block_sum = self._index(cells), np.cumsum(size)
        # Subtracting this offset turns the running sum of the block into that of the cell, with earlier blocks.
        offset = block_sum[starts] - size[starts] - self._used[index]
        fits = block_sum - np.repeat(offset, counts) <= np.repeat(self.budget[index], counts)
        kept = np.add.reduceat(fits, starts, dtype=np.int64)
        keeps_any = kept > 0
        self.cut[index[keeps_any]] = rows[(starts + kept - 1)[keeps_any]]
        self.kept_documents[index] += kept
        self.kept_tokens[index] += np.add.reduceat(tokens * fits, starts)
        self._used[index] = block_sum[starts + counts - 1] - offset

    def keeps(self, rows: NDArray[np.void]) -> NDArray[np.bool_]:
        """Whether each document is kept: whether it ranks at the cut of its cell or before it."""
        if not len(self):
            return np.zeros(len(rows), np.bool_)
        index = self._index(rows["cell"])
        return (self.kept_documents[index] > 0) & at_or_before(rows, self.cut[index])

    def excludes(self, rows: NDArray[np.void]) -> NDArray[np.bool_]:
        """Whether each document has a value that the quota does not name."""
        return ~self.listed[self._index(rows["cell"])] if len(self) else np.zeros(len(rows), np.bool_)

    def thresholds(self) -> pa.Array:
        """The ranked value of the last kept document of each cell; null if none is kept."""
        return pa.array(values_of(self.cut["rank"]), pa.float64(), mask=self.kept_documents == 0)

    def shortfall(self, *, by_tokens: bool) -> NDArray[np.int64]:
        """How much of each quota cannot be filled, because the cell has too few documents."""
        available = self.tokens if by_tokens else self.documents
        return np.asarray(np.maximum(self.quota - available, 0))

    def largest(self, without: Sequence[str] = ()) -> list[dict[str, Any]]:
        """The cells with the most documents, as rows without the columns `without`."""
        order = np.lexsort([self.cell, -self.documents])[:_LARGEST_CELLS]
        names = [n for n in ("value", "documents", "tokens", *_RESULTS, "threshold") if n not in without]
        rows: list[dict[str, Any]] = self.table().select(names).take(pa.array(order)).to_pylist()
        return rows

    def table(self) -> pa.Table:
        """One row per cell, with all attributes."""
        columns = {"value": self.value, "documents": self.documents, "tokens": self.tokens, "listed": self.listed}
        columns |= {name: getattr(self, name) for name in _RESULTS}
        columns |= {"threshold": self.thresholds()}
        return pa.table(columns | {f"cut_{name}": self.cut[name] for name in ORDER} | {"cell": self.cell})

    def to_bytes(self, without: Sequence[str] = ()) -> bytes:
        """The table as a Parquet file, without some columns."""
        file = io.BytesIO()
        pq.write_table(self.table().drop_columns(list(without)), file, compression="zstd")
        return file.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> Cells:
        """Read what `to_bytes` wrote."""
        table = pq.read_table(io.BytesIO(content))
        totals = np.zeros(len(table), _TOTALS)
        for name in _TOTALS.names or ():
            totals[name] = table[name].to_numpy()
        cells = cls(totals, totals["cell"][:0])
        cells.value, cells.listed = table["value"].combine_chunks(), table["listed"].to_numpy()
        for name in _RESULTS:
            setattr(cells, name, table[name].to_numpy())
        for name in ORDER:
            cells.cut[name] = table[f"cut_{name}"].to_numpy()
        return cells


def _share_rounded_down(documents: int, fraction: float) -> int:
    # The decimal number as written: 0.29 * 100 is 28.999... in floating point, but must keep 29.
    return int(Fraction(repr(fraction)) * documents)


def in_proportion(total: int, weights: NDArray[np.float64]) -> NDArray[np.int64]:
    """Split a total into integers in proportion to weights; each is less than one away from the exact part."""
    ends = np.cumsum(weights)
    if not len(ends) or ends[-1] == 0:
        return np.zeros(len(ends), np.int64)
    return np.asarray(np.diff(np.rint(ends / ends[-1] * total).astype(np.int64), prepend=0))


def redistributed(total: int, available: NDArray[np.int64], weights: NDArray[np.float64]) -> NDArray[np.int64]:
    """Split a total in proportion to weights, where no part exceeds what is available and others get the rest.

    Parts are filled in order of available / weight, as long as a part's share of the remaining total exceeds what is
    available. From the first part with enough on, all parts have enough and split the rest in proportion.
    """
    budget = np.zeros(len(weights), np.int64)
    weighted = np.flatnonzero(weights > 0)
    order = weighted[np.argsort(available[weighted] / weights[weighted], kind="stable")]
    has, weight = available[order].astype(np.float64), weights[order]
    remaining = total - (np.cumsum(has) - has)
    per_weight = remaining / np.cumsum(weight[::-1])[::-1]
    has_enough = has > per_weight * weight
    filled = int(np.argmax(has_enough)) if has_enough.any() else len(order)
    budget[order[:filled]] = available[order[:filled]]
    rest = order[filled:]
    budget[rest] = in_proportion(total - int(budget.sum()), weights[rest])
    return budget
