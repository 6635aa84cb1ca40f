"""What a choice rests on, for each document: may it be kept, how does it rank, where does it count, what does it cost.

Documents rank by score; weighted, by score / temperature plus Gumbel noise. Taking the first k of that order is
sampling without replacement with chances in proportion to exp(score / temperature): the exponential keys of Efraimidis
and Spirakis 2006 (Weighted random sampling with a reservoir, algorithm A) in another form, with the weights of QuRating
(Wettig et al. 2024). The noise, and the order of documents that rank alike, come from a hash of id and seed, so neither
depends on where a document stands.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ml_filter.errors import InputError
from ml_filter.selection.config import FilterConfig
from ml_filter.selection.tokens import TokenCounter

MEASURED = np.dtype([("reason", "u1"), ("cell", "u8"), ("rank", "u8"), ("high", "u8"), ("low", "u8"), ("tokens", "u8")])
"""`reason`: a place in `Measure.reasons`; `cell`: a hash of its value in the quota's columns; `rank`: the lower, the
better; `high`, `low`: a 128-bit hash of id and seed; `tokens`: 0 where they are not counted."""
KEPT = "kept"
UNSCORED = "unscored"
_OPERATORS = {
    "<=": operator.le,
    "<": operator.lt,
    ">=": operator.ge,
    ">": operator.gt,
    "==": operator.eq,
    "!=": operator.ne,
}
_HOST = r"^[A-Za-z][A-Za-z0-9+.-]*://(?:[^/?#@]*@)?(?P<host>\[[^\]]*\]|[^/?#:]*)"
_FROM_URL = ("host", "domain")
_SIGN = np.uint64(2**63)


class Columns(NamedTuple):
    """The columns that a choice rests on; of a host or domain, that of the URLs."""

    score: str
    conditions: tuple[str, ...]
    quota: tuple[str, ...]
    tokens: str | None


def find_columns(config: FilterConfig, schemas: Iterable[pa.Schema], where: str) -> Columns:
    """The columns that a configuration means, in documents some of which may lack some columns.

    Raises:
        InputError: a column or criterion is not there, or there are several criteria and none is chosen.
    """
    names: dict[str, None] = {}
    problem: InputError | None = None
    for schema in schemas:
        names |= dict.fromkeys(schema.names)
        try:
            return _columns_in(config, names, where)
        except InputError as error:
            problem = error
    assert problem is not None
    raise problem


def _columns_in(config: FilterConfig, names: Mapping[str, None], where: str) -> Columns:
    criteria = [name.removeprefix("score_") for name in names if name.startswith("score_") and name != "score_status"]
    listed = f"it has {', '.join(names)}"
    if config.criterion is not None and config.criterion not in criteria:
        if criteria or "score" not in names:
            raise InputError(f"{where} has no scores of {config.criterion!r}; it has {', '.join(criteria) or 'none'}")
        raise InputError(f"{where} has one score, which has no name: leave criterion {config.criterion!r} out")
    if config.criterion is None and "score" not in names and len(criteria) != 1:
        if not criteria:
            raise InputError(f"{where} has no column 'score'; make it with ml-filter score ({listed})")
        raise InputError(f"{where} holds scores of {', '.join(criteria)}; choose one with --criterion")
    chosen = config.criterion or ("score" if "score" in names else criteria[0])
    conditions = []
    for condition in config.conditions:
        of_criterion = f"score_{condition.name}"
        if of_criterion not in names and condition.name not in names:
            raise InputError(f"{where} has no score and no column {condition.name!r} (for {condition}); {listed}")
        conditions.append(of_criterion if of_criterion in names else condition.name)
    quota = []
    for name in config.quota.by if config.quota else ():
        if name not in names and not (name in _FROM_URL and "url" in names):
            raise InputError(f"{where} has no column {name!r} for the quota; {listed}")
        quota.append(name if name in names else "url")
    if config.token_column is not None and config.token_column not in names:
        raise InputError(f"{where} has no token column {config.token_column!r}; {listed}")
    score = "score" if chosen == "score" and config.criterion is None else f"score_{chosen}"
    return Columns(score, tuple(conditions), tuple(quota), config.token_column)


class Measure:
    """Measures documents; tokens are counted of those only that may be kept."""

    def __init__(self, config: FilterConfig, columns: Columns) -> None:
        self.config, self.columns = config, columns
        tokenised = config.counts_tokens and columns.tokens is None
        self.counter = TokenCounter(config.tokenizer) if tokenised else None
        self.reasons = [KEPT, UNSCORED, *(f"condition:{condition}" for condition in config.conditions)]
        """Why documents are not kept; a document counts under the first that holds."""
        self.reasons += ["no_token_count"] if columns.tokens else []
        self.reasons += ["below_min_score"] if config.min_score is not None else []

    @property
    def needed(self) -> list[str]:
        """The columns to read."""
        tokens = "text" if self.counter else self.columns.tokens
        of = [self.columns.score, *self.columns.conditions, *self.columns.quota, *([tokens] if tokens else [])]
        return list(dict.fromkeys(["id", *of]))

    def __call__(self, table: pa.Table, uri: str) -> tuple[NDArray[np.void], dict[int, str]]:
        """What is measured of a table, in its order, as MEASURED; and the values of its quota columns by their hash.

        Raises:
            InputError: a column holds something else than it should.
        """
        made = np.zeros(table.num_rows, MEASURED)
        score = _numbers(table, self.columns.score, uri)
        made["reason"] = self._reasons(table, score, uri)
        made["tokens"] = self._tokens(table, made["reason"], uri)
        if self.config.min_score is not None:
            return made, {}
        hashed = id_hashes(table["id"].to_pylist(), self.config.seed)
        made["high"], made["low"] = hashed.T
        value = score if not self.config.weighted else score / self.config.temperature + _gumbel(made["high"])
        made["rank"] = rank_of(value)
        if self.config.quota is None:
            made["cell"] = cell_of("")
            return made, {}
        values = self._values(table, uri).dictionary_encode()
        names = values.dictionary.to_pylist()
        cells = np.array([cell_of(name) for name in names], dtype=np.uint64)
        made["cell"] = cells[values.indices.to_numpy()]
        return made, dict(zip(cells.tolist(), names, strict=True))

    def _reasons(self, table: pa.Table, score: NDArray[np.float64], uri: str) -> NDArray[np.uint8]:
        reason = np.where(np.isfinite(score), 0, self.reasons.index(UNSCORED)).astype(np.uint8)
        for condition, column in zip(self.config.conditions, self.columns.conditions, strict=True):
            values = _numbers(table, column, uri)
            holds = _OPERATORS[condition.op](values, condition.value)
            reason[(reason == 0) & np.isnan(values)] = self.reasons.index(UNSCORED)
            reason[(reason == 0) & ~holds] = self.reasons.index(f"condition:{condition}")
        if self.config.min_score is not None:
            reason[(reason == 0) & (score < self.config.min_score)] = self.reasons.index("below_min_score")
        return reason

    def _tokens(self, table: pa.Table, reason: NDArray[np.uint8], uri: str) -> NDArray[np.uint64]:
        tokens = np.zeros(table.num_rows, np.uint64)
        if self.counter is not None:
            wanted = reason == 0
            tokens[wanted] = self.counter.count(table["text"].filter(pa.array(wanted)).to_pylist())
        elif self.columns.tokens is not None:
            counts = _numbers(table, self.columns.tokens, uri)
            if (counts < 0).any() or (counts % 1 > 0).any():
                raise InputError(f"{uri}: token column {self.columns.tokens!r} holds numbers that are no counts")
            reason[(reason == 0) & ~np.isfinite(counts)] = self.reasons.index("no_token_count")
            tokens = np.where(np.isfinite(counts), counts, 0).astype(np.uint64)
        return tokens

    def _values(self, table: pa.Table, uri: str) -> pa.Array:
        """Each document's values in the quota's columns, joined; what is missing is empty."""
        assert self.config.quota is not None
        values = []
        for name, column in zip(self.config.quota.by, self.columns.quota, strict=True):
            of = _texts(table, column, uri)
            of = _from_url(of, name) if column == "url" and name in _FROM_URL else of
            # so that "a/b", "c" and "a", "b/c" stay apart
            values.append(pc.replace_substring(of, "/", "\\/") if len(self.config.quota.by) > 1 else of)
        joined = pc.binary_join_element_wise(*values, "/")
        return joined.combine_chunks() if isinstance(joined, pa.ChunkedArray) else joined


def _numbers(table: pa.Table, name: str, uri: str) -> NDArray[np.float64]:
    if name not in table.column_names:
        return np.full(table.num_rows, np.nan)
    column = table[name]
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type) or pa.types.is_null(column.type)):
        raise InputError(f"{uri}: column {name!r} holds {column.type}, not numbers")
    values: NDArray[np.float64] = column.cast(pa.float64(), safe=False).to_numpy()
    return values


def _texts(table: pa.Table, name: str, uri: str) -> pa.Array:
    if name not in table.column_names:
        return pa.array([""] * table.num_rows, pa.string())
    kind = table[name].type
    try:
        texts = table[name].combine_chunks().cast(pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise InputError(f"{uri}: column {name!r} holds {kind}, which is nothing to divide by") from None
    return pc.fill_null(texts, "")


def _from_url(urls: pa.Array, part: str) -> pa.Array:
    hosts = pc.fill_null(pc.utf8_lower(pc.struct_field(pc.extract_regex(urls, _HOST), "host")), "")
    if part == "host":
        return hosts
    encoded = hosts.dictionary_encode()
    return pa.array([_domain(host) for host in encoded.dictionary.to_pylist()], pa.string()).take(encoded.indices)


@lru_cache(maxsize=100_000)
def _domain(host: str) -> str:
    """The part of a host name that can be registered, by the public suffix list; the host where there is none."""
    from courlan import extract_domain

    return extract_domain(f"http://{host}/") or host


def cell_of(name: str) -> int:
    """A 64-bit hash of a value of the quota's columns."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def id_hashes(ids: Iterable[str], seed: int) -> NDArray[np.uint64]:
    """A 128-bit hash of each id and the seed, as two numbers: documents x 2. No two ids that one meets share one."""
    salt = seed.to_bytes(8, "little", signed=True)
    digests = b"".join(hashlib.blake2b(name.encode(), digest_size=16, salt=salt).digest() for name in ids)
    return np.frombuffer(digests, ">u8").reshape(-1, 2).astype(np.uint64)


def _gumbel(hashed: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Standard Gumbel noise of uniform 64-bit numbers."""
    uniform = ((hashed >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
    noise: NDArray[np.float64] = -np.log(-np.log(uniform))
    return noise


def rank_of(values: NDArray[np.float64]) -> NDArray[np.uint64]:
    """Numbers in the opposite order of the values, exactly: the highest value has the lowest."""
    bits = (values + 0.0).view(np.uint64)  # -0.0 is 0.0
    ascending = np.where(bits & _SIGN, ~bits, bits | _SIGN)
    return ~ascending


def values_of(ranks: NDArray[np.uint64]) -> NDArray[np.float64]:
    """The values that `rank_of` gave numbers for."""
    ascending = ~ranks
    bits = np.where(ascending & _SIGN, ascending & ~_SIGN, ~ascending)
    return bits.view(np.float64)
