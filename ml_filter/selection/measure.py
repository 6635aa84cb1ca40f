"""Read and measure scored documents: may each be kept, how does it rank, what is its quota cell, how many tokens.

With `weighted`, documents rank by score / temperature plus Gumbel noise. The first k of that order are a sample without
replacement with chances in proportion to exp(score / temperature): the exponential keys of Efraimidis and Spirakis 2006
(Weighted random sampling with a reservoir, algorithm A) in another form, with the weights of QuRating (Wettig et al.
2024). Noise and ties come from a hash of id and seed, so that they do not depend on a document's shard.
"""

from __future__ import annotations

import hashlib
import operator
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.readers import InputShard, known_rows, read_schema, read_shard, read_tables
from ml_filter.documents.rejects import RejectsLog, nothing_read
from ml_filter.documents.sources import list_shards_with_states
from ml_filter.documents.writer import ShardWriter
from ml_filter.errors import InputError
from ml_filter.prepare.tokens import TokenCounter
from ml_filter.selection.config import FilterConfig
from ml_filter.selection.ranking import cell_of, rank_of

MEASURED = np.dtype([("reason", "u1"), ("cell", "u8"), ("rank", "u8"), ("high", "u8"), ("low", "u8"), ("tokens", "u8")])
"""`reason` is an index into `Measure.reasons`, `tokens` 0 if they are not counted; the others as in `RANKED`."""
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
_BLOCK_ROWS = 2**16
_VALUES = pa.schema([("cell", pa.uint64()), ("value", pa.string())])


# --- Scored documents ------------------------------------------------------------------------------------------------


class Corpus:
    """Scored documents, shard by shard, always with the same rows in the same order.

    Of the shards of a manifest, single columns can be read: their texts were checked when they were written, and damage
    is an error. In other files any row may be rejected because of its text, so they are always read completely.
    """

    def __init__(self, source: SourceConfig) -> None:
        self.source = source
        self.shards, self.parents = list_shards_with_states(source)
        self.rows = known_rows(self.shards)
        """Number of documents; None if unknown."""
        self._has_our_columns = source.text_column == "text" and source.id_column in (None, "id")

    @property
    def name(self) -> str:
        """The paths that the user gave."""
        return ", ".join(self.source.paths)

    def schemas(self) -> Iterator[pa.Schema]:
        """The schema of each shard; of formats without a schema, that of the first documents.

        Raises:
            InputError: no document can be read, or a shard of a manifest is damaged.
        """
        rejects, is_empty = RejectsLog(), True
        for shard in self.shards:
            if self._is_checked(shard):
                with _repair_advice():
                    schema = read_schema(shard.uri)
            else:
                table = next(read_shard(shard, self.source, rejects), None)
                schema = None if table is None else table.schema
            if schema is not None:
                is_empty = False
                yield schema
        if is_empty:
            raise nothing_read(self.source.paths, rejects.counts, first=rejects.first)

    def _is_checked(self, shard: InputShard) -> bool:
        return self._has_our_columns and shard.rows is not None

    def tables(
        self, shard: InputShard, rejects: RejectsLog, columns: Sequence[str] | None = None
    ) -> Iterator[tuple[int, pa.Table]]:
        """The documents of a shard as tables, each with the row number of its first document.

        `columns` are required; there may be others, and those that the shard does not have are missing.

        Raises:
            InputError: a shard of a manifest is missing or damaged.
        """
        first_row, checked = 0, self._is_checked(shard)
        with _repair_advice() if checked else nullcontext():
            tables = read_tables(shard.uri, columns, shard.rows) if checked else read_shard(shard, self.source, rejects)
            for table in tables:
                yield first_row, table
                first_row += table.num_rows


@contextmanager
def _repair_advice() -> Iterator[None]:
    try:
        yield
    except InputError as error:
        raise InputError(f"{error}. If it is damaged, delete the directory of its manifest and score again") from error


# --- Columns ---------------------------------------------------------------------------------------------------------


class Columns(NamedTuple):
    """The columns that a selection needs; for the quota columns `host` and `domain`, that of the URLs."""

    score: str
    conditions: tuple[str, ...]
    quota: tuple[str, ...]
    tokens: str | None


def find_columns(config: FilterConfig, schemas: Iterable[pa.Schema], corpus: str) -> Columns:
    """Find the columns that a configuration refers to. Each must be in at least one shard.

    Raises:
        InputError: no shard has a column or criterion, or there are several criteria and none is chosen.
    """
    names: dict[str, None] = {}
    problem = InputError(f"{corpus} has no documents")
    for schema in schemas:
        names |= dict.fromkeys(schema.names)
        try:
            return _columns_in(config, names, corpus)
        except InputError as error:
            problem = error
    raise problem


def _columns_in(config: FilterConfig, names: Mapping[str, None], corpus: str) -> Columns:
    available = f"available columns: {', '.join(names)}"
    conditions = []
    for condition in config.conditions:
        criterion_column = f"score_{condition.name}"
        if criterion_column not in names and condition.name not in names:
            raise InputError(f"{corpus} has no criterion or column {condition.name!r} (for {condition}); {available}")
        conditions.append(criterion_column if criterion_column in names else condition.name)
    quota = []
    for name in config.quota.by if config.quota else ():
        if name not in names and not (name in _FROM_URL and "url" in names):
            raise InputError(f"{corpus} has no column {name!r} for the quota; {available}")
        quota.append(name if name in names else "url")
    if config.token_column is not None and config.token_column not in names:
        raise InputError(f"{corpus} has no token column {config.token_column!r}; {available}")
    return Columns(_score_column(config, names, corpus), tuple(conditions), tuple(quota), config.token_column)


def _score_column(config: FilterConfig, names: Mapping[str, None], corpus: str) -> str:
    criteria = [name.removeprefix("score_") for name in names if name.startswith("score_") and name != "score_status"]
    if config.criterion is not None:
        if config.criterion in criteria:
            return f"score_{config.criterion}"
        if "score" in names and not criteria:
            raise InputError(
                f"{corpus} has a single score without a criterion name; leave out criterion {config.criterion!r}"
            )
        raise InputError(f"{corpus} has no criterion {config.criterion!r}; available: {', '.join(criteria) or 'none'}")
    if "score" in names:
        return "score"
    if len(criteria) == 1:
        return f"score_{criteria[0]}"
    if criteria:
        raise InputError(f"{corpus} has scores for {', '.join(criteria)}; choose one with --criterion")
    raise InputError(
        f"{corpus} has no column 'score'; create it with ml-filter score (available columns: {', '.join(names)})"
    )


# --- Measuring -------------------------------------------------------------------------------------------------------


class Measure:
    """Measures tables of documents. Only the tokens of documents that may be kept are counted."""

    def __init__(self, config: FilterConfig, columns: Columns) -> None:
        self.config, self.columns = config, columns
        self.counter = TokenCounter(config.tokenizer) if config.counts_tokens and columns.tokens is None else None
        self.reasons = [KEPT, UNSCORED, *(f"condition:{condition}" for condition in config.conditions)]
        """Why a document is not kept; the first reason that applies counts."""
        self.reasons += ["no_token_count"] if columns.tokens else []
        self.reasons += ["below_min_score"] if config.min_score is not None else []

    @property
    def required_columns(self) -> list[str]:
        """The columns to read."""
        tokens = "text" if self.counter else self.columns.tokens
        columns = [self.columns.score, *self.columns.conditions, *self.columns.quota, *([tokens] if tokens else [])]
        return list(dict.fromkeys(["id", *columns]))

    def __call__(self, table: pa.Table, uri: str) -> tuple[NDArray[np.void], dict[int, str]]:
        """Measure each document of a table: MEASURED rows in its order, and the value of each cell by its hash.

        Raises:
            InputError: a column has the wrong type.
        """
        measured = np.zeros(table.num_rows, MEASURED)
        score = _numbers(table, self.columns.score, uri)
        measured["reason"] = self._reasons(table, score, uri)
        measured["tokens"] = self._tokens(table, measured["reason"], uri)
        if self.config.min_score is not None:
            return measured, {}
        measured["high"], measured["low"] = id_hashes(table["id"].to_pylist(), self.config.seed).T
        if self.config.weighted:
            score = score / self.config.temperature + _gumbel_noise(measured["high"])
        measured["rank"] = rank_of(score)
        if self.config.quota is None:
            measured["cell"] = cell_of("")
            return measured, {}
        encoded = self._quota_values(table, uri).dictionary_encode()
        values = encoded.dictionary.to_pylist()
        cells = np.array([cell_of(value) for value in values], dtype=np.uint64)
        measured["cell"] = cells[encoded.indices.to_numpy()]
        return measured, dict(zip(cells.tolist(), values, strict=True))

    def _reasons(self, table: pa.Table, score: NDArray[np.float64], uri: str) -> NDArray[np.uint8]:
        reason = np.where(np.isfinite(score), 0, self.reasons.index(UNSCORED)).astype(np.uint8)
        for condition, column in zip(self.config.conditions, self.columns.conditions, strict=True):
            values = _numbers(table, column, uri)
            is_met = _OPERATORS[condition.op](values, condition.value)
            reason[(reason == 0) & np.isnan(values)] = self.reasons.index(UNSCORED)
            reason[(reason == 0) & ~is_met] = self.reasons.index(f"condition:{condition}")
        if self.config.min_score is not None:
            reason[(reason == 0) & (score < self.config.min_score)] = self.reasons.index("below_min_score")
        return reason

    def _tokens(self, table: pa.Table, reason: NDArray[np.uint8], uri: str) -> NDArray[np.uint64]:
        """Tokens per document; marks documents without a token count in `reason`."""
        tokens = np.zeros(table.num_rows, np.uint64)
        if self.counter is not None:
            may_be_kept = reason == 0
            tokens[may_be_kept] = self.counter.count(table["text"].filter(pa.array(may_be_kept)).to_pylist())
        elif self.columns.tokens is not None:
            counts = _numbers(table, self.columns.tokens, uri)
            if (counts < 0).any() or (counts % 1 > 0).any():
                raise InputError(f"{uri}: token column {self.columns.tokens!r} contains negative or fractional numbers")
            reason[(reason == 0) & ~np.isfinite(counts)] = self.reasons.index("no_token_count")
            tokens = np.where(np.isfinite(counts), counts, 0).astype(np.uint64)
        return tokens

    def _quota_values(self, table: pa.Table, uri: str) -> pa.Array:
        """The values of the quota's columns, joined per document; a missing value is empty."""
        assert self.config.quota is not None
        columns = []
        for name, column in zip(self.config.quota.by, self.columns.quota, strict=True):
            texts = _texts(table, column, uri)
            texts = _from_url(texts, name) if column == "url" and name in _FROM_URL else texts
            # Escaped, so that the values "a/b", "c" and "a", "b/c" stay different.
            columns.append(pc.replace_substring(texts, "/", "\\/") if len(self.config.quota.by) > 1 else texts)
        joined = pc.binary_join_element_wise(*columns, "/")
        return joined.combine_chunks() if isinstance(joined, pa.ChunkedArray) else joined


def _numbers(table: pa.Table, name: str, uri: str) -> NDArray[np.float64]:
    if name not in table.column_names:
        return np.full(table.num_rows, np.nan)
    column = table[name]
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type) or pa.types.is_null(column.type)):
        raise InputError(f"{uri}: column {name!r} contains {column.type}, not numbers")
    values: NDArray[np.float64] = column.cast(pa.float64(), safe=False).to_numpy()
    return values


def _texts(table: pa.Table, name: str, uri: str) -> pa.Array:
    if name not in table.column_names:
        return pa.array([""] * table.num_rows, pa.string())
    try:
        texts = table[name].combine_chunks().cast(pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise InputError(
            f"{uri}: column {name!r} contains {table[name].type}, which cannot be used for a quota"
        ) from None
    return pc.fill_null(texts, "")


def _from_url(urls: pa.Array, part: str) -> pa.Array:
    hosts = pc.fill_null(pc.utf8_lower(pc.struct_field(pc.extract_regex(urls, _HOST), "host")), "")
    if part == "host":
        return hosts
    encoded = hosts.dictionary_encode()
    return pa.array([_domain(host) for host in encoded.dictionary.to_pylist()], pa.string()).take(encoded.indices)


@lru_cache(maxsize=100_000)
def _domain(host: str) -> str:
    """The registrable part of a host name by the public suffix list; the host if it has none."""
    from courlan import extract_domain

    return extract_domain(f"http://{host}/") or host


def id_hashes(ids: Iterable[str], seed: int) -> NDArray[np.uint64]:
    """A 128-bit hash of each id and the seed, as two integers [documents, 2]. Collisions are practically impossible."""
    salt = seed.to_bytes(8, "little", signed=True)
    digests = b"".join(hashlib.blake2b(name.encode(), digest_size=16, salt=salt).digest() for name in ids)
    return np.frombuffer(digests, ">u8").reshape(-1, 2).astype(np.uint64)


def _gumbel_noise(hashes: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Standard Gumbel noise from uniform 64-bit hashes."""
    uniform = ((hashes >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52  # never 0 or 1
    noise: NDArray[np.float64] = -np.log(-np.log(uniform))
    return noise


# --- Measurements on disk --------------------------------------------------------------------------------------------


class Measurements:
    """The measurements of each shard in a file (41 bytes per document), which a resumed run uses again."""

    def __init__(self, directory: Path, corpus: Corpus, measure: Measure) -> None:
        self.corpus, self.measure = corpus, measure
        self._directory = directory

    def add(self, shard: InputShard, advance: Callable[[int], None] = lambda rows: None) -> None:
        """Measure a shard, unless it is measured already; `advance` gets the number of documents of each step."""
        path = self._path(shard)
        if path.exists():
            advance(path.stat().st_size // MEASURED.itemsize)
            return
        values: dict[int, str] = {}
        temporary = path.with_suffix(".tmp")
        with temporary.open("wb") as file:
            for _, table in self.corpus.tables(shard, RejectsLog(), self.measure.required_columns):
                measured, table_values = self.measure(table, shard.uri)
                file.write(measured.tobytes())
                values |= table_values
                advance(table.num_rows)
            file.flush()
            os.fsync(file.fileno())
        table = pa.table({"cell": list(values), "value": list(values.values())}, schema=_VALUES)
        with ShardWriter(path.with_suffix(".values"), _VALUES) as writer:
            writer.write(table)
        os.replace(temporary, path)  # last: this name says that the shard is measured

    def rows(self, shard: InputShard, first_row: int, count: int) -> NDArray[np.void]:
        """The measurements of consecutive documents; measures the shard if its file is missing.

        Raises:
            InputError: the shard had fewer documents when it was measured.
        """
        self.add(shard)
        rows = np.fromfile(self._path(shard), MEASURED, count, offset=first_row * MEASURED.itemsize)
        if len(rows) < count:
            raise InputError(f"{shard.uri} changed while it was read; delete the output and start over")
        return rows

    def blocks(self, shard: InputShard) -> Iterator[tuple[int, NDArray[np.void]]]:
        """The measurements of a shard in bounded blocks, each with the number of its first row."""
        first_row = 0
        while len(block := np.fromfile(self._path(shard), MEASURED, _BLOCK_ROWS, offset=first_row * MEASURED.itemsize)):
            yield first_row, block
            first_row += len(block)

    def values(self, shard: InputShard) -> pa.Table:
        """`cell` and `value` of each cell in a shard."""
        return pq.read_table(self._path(shard).with_suffix(".values"), partitioning=None)

    def _path(self, shard: InputShard) -> Path:
        return self._directory / f"{shard.name}-{str(shard.state)[:8]}.measured"  # another file may get the same name
