"""From the state to a directory of documents that grows: a shard is written again only if one of its documents is."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from ml_filter.documents.finished import ShardResult
from ml_filter.documents.growing import GrowingDirectory
from ml_filter.documents.manifest import Manifest, Parent, digest_of
from ml_filter.documents.output_directory import SHARD_DIRECTORY
from ml_filter.documents.readers import read_tables
from ml_filter.downstream.fetching.config import FetchConfig
from ml_filter.downstream.fetching.state import State
from ml_filter.errors import InputError

KIND = "fetched"
SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("url", pa.string(), nullable=False),
        pa.field("language", pa.string()),
        pa.field("source", pa.string(), nullable=False),
        pa.field("title", pa.string()),
        pa.field("license", pa.string()),
        pa.field("published", pa.string()),  # ISO 8601, UTC
        pa.field("etag", pa.string()),
        pa.field("fetched_at", pa.string(), nullable=False),  # ISO 8601, UTC
    ]
)
_REJECTS = "rejects"
"""A shard without documents, for the rejects of all requests."""
_ROWS = 100


def output_of(config: FetchConfig, output: str | Path, parents: list[Parent] | None = None) -> GrowingDirectory:
    """The output directory, which is pinned by the settings that decide what is in it."""
    return GrowingDirectory(output, KIND, config.pinned, parents or [])


def write_output(config: FetchConfig, output: str | Path, state: State, figures: Mapping[str, int]) -> Manifest:
    """Write the documents of the state to shards, and the manifest last; then the state forgets their texts."""
    state.assign_shards(config.shard_documents)
    states = state.shard_states()
    states[_REJECTS] = _digest(state.rejects())
    parent = Parent(path=state.path.name, digest=digest_of(states))
    with output_of(config, output, [parent]) as out:
        if not out.is_complete:
            out.reuse(states)
            out.facts["run"] = dict(figures)
            for name, shard_state in states.items():
                if out.finished_shard(name) is None:
                    _write_shard(out, name, shard_state, state)
            manifest = out.finish((name, _finished(out, name)) for name in states)
        else:
            assert out.manifest is not None
            manifest = out.manifest
    state.forget_rows()
    return manifest


def _finished(out: GrowingDirectory, name: str) -> ShardResult:
    result = out.finished_shard(name)
    assert result is not None
    return result


def _write_shard(out: GrowingDirectory, name: str, shard_state: str, state: State) -> None:
    count = 0
    with out.new_shard(name, None if name == _REJECTS else SCHEMA) as writer, out.new_rejects(name) as rejects:
        if name == _REJECTS:
            for reject in state.rejects():
                rejects.add(*reject)
        else:
            for table in _documents(out, name, state):
                writer.write(table)
                count += table.num_rows
    out.commit(name, writer, rejects, {"documents": count}, shard_state)


def _documents(out: GrowingDirectory, name: str, state: State) -> Iterator[pa.Table]:
    """The documents that the shard has and that stay as they are, then those that are new or changed."""
    kept = {document_id for document_id, row in state.rows(name) if row is None}
    if kept:
        found = 0
        shard = out.location / SHARD_DIRECTORY / f"{name}.parquet"
        for table in read_tables(str(shard)) if shard.exists() else ():
            staying = table.filter(pc.is_in(table["id"], pa.array(sorted(kept), pa.string())))
            found += staying.num_rows
            yield staying.select(SCHEMA.names).cast(SCHEMA)
        if found != len(kept):
            raise InputError(
                f"{out.path}: {len(kept) - found:,} documents of shard {name} are missing; delete the directory and "
                f"{state.path} to fetch all again"
            )
    batch = []
    for _, row in state.rows(name):
        if row is not None:
            batch.append(row)
        if len(batch) == _ROWS:
            yield pa.Table.from_pylist(batch, SCHEMA)
            batch = []
    if batch:
        yield pa.Table.from_pylist(batch, SCHEMA)


def _digest(rows: Iterator[tuple[str, str, str, str]]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(repr(row).encode())
    return digest.hexdigest()
