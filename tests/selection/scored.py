"""Scored documents written directly to disk, and their ranking in plain Python."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.manifest import Manifest
from ml_filter.selection.config import FilterConfig
from ml_filter.selection.select import filter_corpus

Row = dict[str, Any]


def rows_of(scores: Sequence[float | None], **columns: Sequence[Any]) -> list[Row]:
    """Documents with these scores and columns."""
    rows = [{"id": f"d{i}", "text": f"text {i}", "score": score} for i, score in enumerate(scores)]
    for name, values in columns.items():
        for row, value in zip(rows, values, strict=True):
            row[name] = value
    return rows


def write_shards(directory: Path, shards: Iterable[Sequence[Row]]) -> SourceConfig:
    """One file per list of rows, alternating between Parquet and JSON lines."""
    directory.mkdir(parents=True, exist_ok=True)
    for number, rows in enumerate(shards):
        if number % 2:
            (directory / f"part-{number}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        elif rows:
            pq.write_table(pa.Table.from_pylist(list(rows)), directory / f"part-{number}.parquet")
    return SourceConfig(paths=[str(directory)])


def select(source: SourceConfig, output: Path, **config: Any) -> Manifest:
    return filter_corpus(source, FilterConfig.model_validate(config), output)


def read_rows(manifest: Manifest) -> list[Row]:
    return [row for path in manifest.shard_paths() for row in pq.read_table(path).to_pylist()]


def kept_ids(manifest: Manifest) -> set[str]:
    return {row["id"] for row in read_rows(manifest)}


def in_order(rows: Iterable[Row], seed: int = 0) -> list[Row]:
    """Scored rows, best first; ties are ordered by a hash of seed and id."""
    salt = seed.to_bytes(8, "little", signed=True)

    def key(row: Row) -> tuple[float, bytes]:
        return -row["score"], hashlib.blake2b(row["id"].encode(), digest_size=16, salt=salt).digest()

    return sorted((row for row in rows if row["score"] is not None), key=key)


def ids_within(budget: int, rows: Iterable[Row]) -> set[str]:
    """The ids of the best rows, up to the first that exceeds the token budget."""
    ids, used = set(), 0
    for row in in_order(rows):
        used += row["tokens"]
        if used > budget:
            break
        ids.add(row["id"])
    return ids
