"""Divide what is kept over the values of columns, and find where the ranking of each value is cut."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ml_filter.selection.config import FilterConfig
from ml_filter.selection.measure import cell_of, values_of
from ml_filter.selection.ranking import ORDER, RANKED, at_or_before

_TOTAL = np.dtype([("cell", "u8"), ("documents", "i8"), ("tokens", "i8")])
_GIVEN = ("quota", "budget", "kept_documents", "kept_tokens")
_SHOWN = 100


def named_values(config: FilterConfig) -> pa.Table:
    """`cell` and `value` of the values that a quota names one by one; without a quota, of the only one there is."""
    names = [""] if config.quota is None else list(config.quota.named or ())
    return pa.table(
        {"cell": pa.array([cell_of(name) for name in names], pa.uint64()), "value": pa.array(names, pa.string())}
    )


class Totals:
    """How many documents and tokens each value has that may be kept."""

    def __init__(self) -> None:
        self._parts: list[NDArray[np.void]] = [np.empty(0, _TOTAL)]

    def add(self, ranked: NDArray[np.void]) -> None:
        """Count rows of the ranking."""
        made = np.zeros(len(ranked), _TOTAL)
        made["cell"], made["documents"], made["tokens"] = ranked["cell"], 1, ranked["tokens"]
        self._parts.append(_summed(made))
        if sum(map(len, self._parts[1:])) >= len(self._parts[0]):
            self._parts = [self.summed()]

    def summed(self) -> NDArray[np.void]:
        """`cell`, `documents`, `tokens`, in order of the cell."""
        return _summed(np.concatenate(self._parts))


def _summed(rows: NDArray[np.void]) -> NDArray[np.void]:
    cells, inverse = np.unique(rows["cell"], return_inverse=True)
    made = np.zeros(len(cells), _TOTAL)
    made["cell"] = cells
    for name in ("documents", "tokens"):
        np.add.at(made[name], inverse, rows[name])
    return made


class Cells:
    """The values of the quota's columns (without a quota, one): what they have, get and keep.

    Attributes:
        cell: hash of each value, ascending.
        documents, tokens: how many may be kept.
        listed: whether the value gets anything; False where others are named one by one.
        quota: what it was to get, in tokens of a token budget, else in documents.
        budget: the same after what others have too few documents for was given on.
        kept_documents, kept_tokens: how many are kept.
        cut: the last document that is kept, in the order of the ranking; only where one is.
        value: the values, as text.
    """

    def __init__(self, totals: NDArray[np.void], named: NDArray[np.uint64]) -> None:
        absent = np.zeros(len(named), _TOTAL)
        absent["cell"] = named
        totals = _summed(np.concatenate([totals, absent]))
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

    def name(self, values: Iterable[pa.Table]) -> None:
        """Give the cells their values, from tables of `cell` and `value`."""
        if not len(self):
            return
        known = np.zeros(len(self), np.bool_)
        at: list[NDArray[np.int64]] = []
        texts: list[pa.Array] = []
        for table in values:
            cells = table["cell"].to_numpy()
            place = self.places(cells)
            new = (self.cell[place] == cells) & ~known[place]
            known[place[new]] = True
            at.append(place[new])
            texts += table["value"].filter(pa.array(new)).chunks
        order = np.argsort(np.concatenate(at), kind="stable")
        self.value = pa.chunked_array(texts, pa.string()).take(pa.array(order)).combine_chunks()

    def places(self, cells: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Where cells stand; of one that is not here, the place of another."""
        return np.minimum(np.searchsorted(self.cell, cells), len(self) - 1)

    def divide(self, config: FilterConfig) -> None:
        """Set quota and budget of each value."""
        if config.keep_fraction is not None:
            fractions = np.full(len(self), config.keep_fraction)
            for name, fraction in (config.quota.fractions if config.quota else {}).items():
                fractions[self.cell == cell_of(name)] = fraction
            kept = map(_whole_share, self.documents.tolist(), fractions.tolist())
            self.quota = np.fromiter(kept, np.int64, len(self))
            self.budget = self.quota.copy()
            return
        assert config.token_budget is not None
        weights = np.ones(len(self))
        quota = config.quota
        if quota is not None and quota.named is not None:
            weights = np.zeros(len(self))
            for name, weight in quota.named.items():
                weights[self.cell == cell_of(name)] = weight
            self.listed = np.isin(self.cell, [cell_of(name) for name in quota.named])
        elif quota is not None and quota.split == "proportional":
            weights = self.tokens.astype(np.float64)
        self.quota = weights.astype(np.int64) if quota and quota.tokens else in_proportion(config.token_budget, weights)
        self.budget = self.quota.copy()
        if quota is None or quota.redistributes:
            self.budget = redistributed(config.token_budget, self.tokens, weights)

    def take(self, ranked: NDArray[np.void], *, by_tokens: bool) -> None:
        """Keep of the next rows of the ranking those that fit into the budgets.

        The first that does not fit ends the list of its value, so that no document is passed over for a worse one.
        """
        if not len(ranked):
            return
        tokens = ranked["tokens"].astype(np.int64)
        size = tokens if by_tokens else np.ones_like(tokens)
        cells, starts, counts = np.unique(ranked["cell"], return_index=True, return_counts=True)
        at, total = self.places(cells), np.cumsum(size)
        before = total[starts] - size[starts] - self._used[at]
        fits = total - np.repeat(before, counts) <= np.repeat(self.budget[at], counts)
        kept = np.add.reduceat(fits, starts, dtype=np.int64)
        some = kept > 0
        self.cut[at[some]] = ranked[(starts + kept - 1)[some]]
        self.kept_documents[at] += kept
        self.kept_tokens[at] += np.add.reduceat(tokens * fits, starts)
        self._used[at] = total[starts + counts - 1] - before

    def keeps(self, ranked: NDArray[np.void]) -> NDArray[np.bool_]:
        """Whether documents are among those that are kept."""
        if not len(self):
            return np.zeros(len(ranked), np.bool_)
        at = self.places(ranked["cell"])
        return (self.kept_documents[at] > 0) & at_or_before(ranked, self.cut[at])

    def leaves_out(self, ranked: NDArray[np.void]) -> NDArray[np.bool_]:
        """Whether documents have a value that gets nothing, as others are named one by one."""
        return ~self.listed[self.places(ranked["cell"])] if len(self) else np.zeros(len(ranked), np.bool_)

    def thresholds(self) -> pa.Array:
        """What the last document that is kept was ranked by; null: nothing is kept."""
        return pa.array(values_of(self.cut["rank"]), pa.float64(), mask=self.kept_documents == 0)

    def lacking(self, *, by_tokens: bool) -> NDArray[np.int64]:
        """What of each quota there are too few documents for."""
        has = self.tokens if by_tokens else self.documents
        return np.asarray(np.maximum(self.quota - has, 0))

    def largest(self, without: Sequence[str] = ()) -> list[dict[str, Any]]:
        """The values with the most documents, as rows, without some figures."""
        order = np.lexsort([self.cell, -self.documents])[:_SHOWN]
        names = ("value", "documents", "tokens", *_GIVEN, "threshold")
        chosen = [name for name in names if name not in without]
        rows: list[dict[str, Any]] = self.table().select(chosen).take(pa.array(order)).to_pylist()
        return rows

    def table(self) -> pa.Table:
        """A row for each value, with all that is known of it."""
        columns = {"value": self.value, "documents": self.documents, "tokens": self.tokens, "listed": self.listed}
        columns |= {name: getattr(self, name) for name in _GIVEN}
        columns |= {"threshold": self.thresholds()}
        return pa.table(columns | {f"cut_{name}": self.cut[name] for name in ORDER} | {"cell": self.cell})

    def to_bytes(self, without: Sequence[str] = ()) -> bytes:
        """The table as a Parquet file, without some columns."""
        made = io.BytesIO()
        pq.write_table(self.table().drop_columns(list(without)), made, compression="zstd")
        return made.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> Cells:
        """The cells of `to_bytes`."""
        table = pq.read_table(io.BytesIO(content))
        totals = np.zeros(len(table), _TOTAL)
        for name in _TOTAL.names or ():
            totals[name] = table[name].to_numpy()
        cells = cls(totals, totals["cell"][:0])
        cells.value, cells.listed = table["value"].combine_chunks(), table["listed"].to_numpy()
        for name in _GIVEN:
            setattr(cells, name, table[name].to_numpy())
        for name in ORDER:
            cells.cut[name] = table[f"cut_{name}"].to_numpy()
        return cells


def _whole_share(documents: int, fraction: float) -> int:
    """A share of documents, rounded down; the fraction is the decimal number that was written."""
    return int(Fraction(repr(fraction)) * documents)


def in_proportion(total: int, weights: NDArray[np.float64]) -> NDArray[np.int64]:
    """Whole parts of a total in proportion to weights, each less than one away from its exact part."""
    ends = np.cumsum(weights)
    if not len(ends) or ends[-1] == 0:
        return np.zeros(len(ends), np.int64)
    return np.asarray(np.diff(np.rint(ends / ends[-1] * total).astype(np.int64), prepend=0))


def redistributed(total: int, available: NDArray[np.int64], weights: NDArray[np.float64]) -> NDArray[np.int64]:
    """Parts of a total in proportion to weights, where none gets more than it has and the others get the rest.

    Those that have the least for their weight are filled first, as long as their part of what is left is more than
    they have.
    """
    budget = np.zeros(len(weights), np.int64)
    wanting = np.flatnonzero(weights > 0)
    order = wanting[np.argsort(available[wanting] / weights[wanting], kind="stable")]
    has, weight = available[order].astype(np.float64), weights[order]
    left = total - (np.cumsum(has) - has)
    level = left / np.cumsum(weight[::-1])[::-1]
    filled = int(np.argmax(has > level * weight)) if (has > level * weight).any() else len(order)
    budget[order[:filled]] = available[order[:filled]]
    rest = order[filled:]
    budget[rest] = in_proportion(total - int(budget.sum()), weights[rest])
    return budget
