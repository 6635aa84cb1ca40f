"""Rank documents and find where a budget cuts the ranking: exactly, in memory that does not grow with their number.

Documents are ranked within each cell: one combination of values of the quota's columns. Three ideas keep memory flat:

- External sort: documents are sorted in pieces, which are written to one file (48 bytes per document) and merged.
- Prefix cut: a budget keeps a prefix of each cell's ranking, so the last kept document of each cell describes the whole
  selection.
- One ordered pass: the cuts are found while the merged ranking streams by, with one running sum and about 400 bytes per
  cell.
"""

from __future__ import annotations

import hashlib
import heapq
import io
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ml_filter.selection.config import FilterConfig

ORDER = ("cell", "rank", "high", "low", "tokens", "place")
RANKED = np.dtype([(name, ">u8") for name in ORDER])
"""A document in the ranking, which sorts by these fields in this order; big-endian, so by its bytes.

`cell` is a hash of its values, `rank` is lower for a better document, `high` and `low` are a hash of its id that breaks
ties, and `place` (shard and row) orders documents with the same id and score.
"""
_BYTES = f"S{RANKED.itemsize}"
_PIECE_ROWS = 2**16
_MIN_BLOCK_ROWS = 2**6
_ROW_BITS = 40
_TOTALS = [("cell", "u8"), ("documents", "i8"), ("tokens", "i8")]
_RESULTS = ("quota", "budget", "kept_documents", "kept_tokens")
_CELL = np.dtype([*_TOTALS, ("listed", "?"), *((name, "i8") for name in (*_RESULTS, "used")), ("cut", RANKED)])
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
    """Whether each row ranks at its bound or before it."""
    before: NDArray[np.bool_] = rows.view(_BYTES) <= bounds.view(_BYTES)
    return before


def external_sort(
    blocks: Iterable[NDArray[np.void]], path: Path, piece_rows: int = _PIECE_ROWS
) -> Iterator[NDArray[np.void]]:
    """Sort any number of rows: in pieces, which are written to `path` at once and merged in blocks when read.

    Memory holds two pieces of `piece_rows` rows, but at least 64 rows of each piece.
    """
    lengths: list[int] = []
    with path.open("wb") as file:
        for piece in _joined(blocks, piece_rows):
            np.sort(piece.view(_BYTES)).tofile(file)
            lengths.append(len(piece))
    block_rows = max(_MIN_BLOCK_ROWS, 2 * piece_rows // max(len(lengths), 1))

    def read(start: int, end: int) -> Iterator[bytes]:
        for first in range(start, end, block_rows):
            rows = np.fromfile(path, _BYTES, min(block_rows, end - first), offset=first * RANKED.itemsize)
            yield from rows.tolist()

    merged = heapq.merge(*(read(end - length, end) for length, end in zip(lengths, accumulate(lengths), strict=True)))
    return (np.array(rows, _BYTES).view(RANKED) for rows in iter(lambda: list(islice(merged, _PIECE_ROWS)), []))


def _joined(blocks: Iterable[NDArray[np.void]], rows: int) -> Iterator[NDArray[np.void]]:
    """The rows in blocks of at least `rows`, except for the last."""
    pending: list[NDArray[np.void]] = []
    for block in blocks:
        pending.append(block)
        if sum(map(len, pending)) >= rows:
            yield np.concatenate(pending, dtype=RANKED)  # without a dtype, the bytes would be in native order
            pending = []
    if pending:
        yield np.concatenate(pending, dtype=RANKED)


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
            self._parts = [_sum_by_cell(np.concatenate(self._parts))]

    def cells(self, named: Collection[int]) -> Cells:
        """The counted cells, and those that are named, in ascending order."""
        empty = np.zeros(len(named), _TOTALS)
        empty["cell"] = list(named)
        totals = _sum_by_cell(np.concatenate([*self._parts, empty]))
        rows = np.zeros(len(totals), _CELL)
        for name, _ in _TOTALS:
            rows[name] = totals[name]
        rows["listed"] = True
        return Cells(rows, pa.array([""] * len(rows), pa.string()))


def _sum_by_cell(rows: NDArray[np.void]) -> NDArray[np.void]:
    cells, inverse = np.unique(rows["cell"], return_inverse=True)
    totals = np.zeros(len(cells), _TOTALS)
    totals["cell"] = cells
    for name in ("documents", "tokens"):
        np.add.at(totals[name], inverse, rows[name])
    return totals


class Cells:
    """The cells of a quota: what each has, may keep and keeps. Without a quota there is one cell.

    `value` has the value of each cell, `rows` one row per cell, ascending by `cell`, the hash of its value:
        `documents`, `tokens`: what can be kept.
        `listed`: False if the quota names other values, so that this one gets nothing.
        `quota`: what the cell should get: tokens of a token budget, otherwise documents.
        `budget`: the quota after redistributing what other cells have too few documents for.
        `used`: running sum of the ranking, in the unit of the budget.
        `cut`: the last kept document; undefined if none is kept.
    """

    def __init__(self, rows: NDArray[np.void], value: pa.Array) -> None:
        self.rows, self.value = rows, value

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self.rows[name]

    def _index(self, cells: NDArray[np.uint64]) -> NDArray[np.int64]:
        """The index of each cell; an arbitrary index for an unknown one."""
        return np.minimum(np.searchsorted(self["cell"], cells), len(self) - 1)

    def set_values(self, named: Mapping[int, str], tables: Iterable[pa.Table]) -> None:
        """Set the value of each cell from those named, and tables of `cell` and `value` that may repeat a cell."""
        values = dict(named)
        for table in tables:
            known = table.filter(pa.array(np.isin(table["cell"].to_numpy(), self["cell"])))
            values.update(zip(known["cell"].to_pylist(), known["value"].to_pylist(), strict=True))
        self.value = pa.array([values[cell] for cell in self["cell"].tolist()], pa.string())

    def set_budgets(self, config: FilterConfig) -> None:
        """Set quota and budget of each cell."""
        quota = config.quota
        if config.keep_fraction is not None:
            fractions = self._by_value(quota.fractions if quota else {}, config.keep_fraction)
            kept = map(_share_rounded_down, self["documents"].tolist(), fractions.tolist())
            self["quota"][:] = self["budget"][:] = np.fromiter(kept, np.int64, len(self))
            return
        assert config.token_budget is not None
        weights = np.ones(len(self))
        if quota is not None and quota.named is not None:
            weights = self._by_value(quota.named, 0)
            self["listed"][:] = np.isin(self["cell"], [cell_of(value) for value in quota.named])
        elif quota is not None and quota.split == "proportional":
            weights = self["tokens"].astype(np.float64)
        amounts = weights.astype(np.int64) if quota and quota.tokens else in_proportion(config.token_budget, weights)
        self["quota"][:] = self["budget"][:] = amounts
        if quota is None or quota.redistributes:
            self["budget"][:] = redistributed(config.token_budget, self["tokens"], weights)

    def _by_value(self, amounts: Mapping[str, float], default: float) -> NDArray[np.float64]:
        """The amount of each cell, by its value."""
        result = np.full(len(self), default, np.float64)
        for value, amount in amounts.items():
            result[self["cell"] == cell_of(value)] = amount
        return result

    def fill(self, rows: NDArray[np.void], *, by_tokens: bool) -> None:
        """Fill the budgets with the next block of the ranking, in which the rows of a cell are adjacent.

        A row fits if the running sum of its cell, including the row, is within the budget. Rows that do not fit count
        as well, so the sum never falls: after the first row that does not fit, no later row of the cell does. The kept
        rows are therefore a prefix, and no document is passed over in favour of a worse one.
        """
        tokens = rows["tokens"].astype(np.int64)
        size = tokens if by_tokens else np.ones_like(tokens)
        cells, starts, counts = np.unique(rows["cell"], return_index=True, return_counts=True)
        index, block_sum = self._index(cells), np.cumsum(size)
        # Subtracting this offset turns the running sum of the block into that of the cell, with earlier blocks.
        offset = block_sum[starts] - size[starts] - self["used"][index]
        fits = block_sum - np.repeat(offset, counts) <= np.repeat(self["budget"][index], counts)
        kept = np.add.reduceat(fits, starts, dtype=np.int64)
        keeps_any = kept > 0
        self["cut"][index[keeps_any]] = rows[(starts + kept - 1)[keeps_any]]
        self["kept_documents"][index] += kept
        self["kept_tokens"][index] += np.add.reduceat(tokens * fits, starts)
        self["used"][index] = block_sum[starts + counts - 1] - offset

    def keeps(self, rows: NDArray[np.void]) -> NDArray[np.bool_]:
        """Whether each document is kept: whether it ranks at the cut of its cell or before it."""
        if not len(self):
            return np.zeros(len(rows), np.bool_)
        index = self._index(rows["cell"])
        return (self["kept_documents"][index] > 0) & at_or_before(rows, self["cut"][index])

    def excludes(self, rows: NDArray[np.void]) -> NDArray[np.bool_]:
        """Whether each document has a value that the quota does not name."""
        return ~self["listed"][self._index(rows["cell"])] if len(self) else np.zeros(len(rows), np.bool_)

    def thresholds(self) -> pa.Array:
        """The ranked value of the last kept document of each cell; null if none is kept."""
        return pa.array(values_of(self["cut"]["rank"].astype("u8")), pa.float64(), mask=self["kept_documents"] == 0)

    def shortfall(self, *, by_tokens: bool) -> NDArray[np.int64]:
        """How much of each quota cannot be filled, because the cell has too few documents."""
        return np.asarray(np.maximum(self["quota"] - self["tokens" if by_tokens else "documents"], 0))

    def rule_for(self, shard: int) -> str:
        """A digest of what decides whether a document of a shard is kept."""
        keeps_any = self["kept_documents"] > 0
        cuts = self["cut"].copy()
        # Only whether the cut is in this shard, before or after it: shards that are added renumber the others.
        cuts["place"] = np.clip(cuts["place"].astype(np.int64) - (shard << _ROW_BITS), -1, 1 << _ROW_BITS) + 1
        cuts = np.where(keeps_any, cuts, np.zeros((), RANKED))
        parts = (self["cell"], self["listed"], keeps_any, cuts)
        return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()

    def largest(self, without: Sequence[str] = ()) -> list[dict[str, Any]]:
        """The cells with the most documents, as rows without the columns `without`."""
        order = np.lexsort([self["cell"], -self["documents"]])[:_LARGEST_CELLS]
        names = [n for n in ("value", "documents", "tokens", *_RESULTS, "threshold") if n not in without]
        rows: list[dict[str, Any]] = self.table().select(names).take(pa.array(order)).to_pylist()
        return rows

    def table(self) -> pa.Table:
        """One row per cell, with all attributes."""
        names = ("documents", "tokens", "listed", *_RESULTS)
        columns = {"value": self.value, **{name: self[name] for name in names}, "threshold": self.thresholds()}
        cuts = {f"cut_{name}": self["cut"][name].astype("u8") for name in ORDER}
        return pa.table({**columns, **cuts, "cell": self["cell"]})

    def to_bytes(self, without: Sequence[str] = ()) -> bytes:
        """The table as a Parquet file, without some columns."""
        file = io.BytesIO()
        pq.write_table(self.table().drop_columns(list(without)), file, compression="zstd")
        return file.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> Cells:
        """Read what `to_bytes` wrote."""
        table = pq.read_table(io.BytesIO(content))
        rows = np.zeros(len(table), _CELL)
        for name in ("cell", "documents", "tokens", "listed", *_RESULTS):
            rows[name] = table[name].to_numpy()
        for name in ORDER:
            rows["cut"][name] = table[f"cut_{name}"].to_numpy()
        return cls(rows, table["value"].combine_chunks())


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
