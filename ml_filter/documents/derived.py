"""Rows of a finished directory, and documents that are made of them, such as those that an LLM is asked about."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import pyarrow as pa

from ml_filter.documents.manifest import Manifest, Parent
from ml_filter.documents.output_directory import OutputDirectory
from ml_filter.documents.readers import read_tables

_SCHEMA = pa.schema([("id", pa.string()), ("text", pa.string())])


def read_rows_of(manifest: Manifest, columns: Collection[str] | None = None) -> Iterator[dict[str, Any]]:
    """The rows of all shards of a directory, in order; columns as of `read_tables`."""
    for path in manifest.shard_paths():
        for table in read_tables(path, columns):
            yield from table.to_pylist()


def derive_documents(
    parent: Manifest,
    columns: Collection[str],
    documents_of: Callable[[dict[str, Any]], Iterable[tuple[str, str]]],
    output: str,
) -> Manifest:
    """Write documents that are made of the rows of a directory.

    Args:
        columns: those that the documents are made of.
        documents_of: the id and text of each document of a row.
        output: the name of the directory says how they are made; `{digest}` stands for that of the parent.
    """
    with OutputDirectory(output, "documents", {}, [Parent(path=parent.root, digest=parent.digest)]) as out:
        if out.manifest:
            return out.manifest
        with out.new_shard("documents", _SCHEMA) as writer, out.new_rejects("documents") as rejects:
            for path in parent.shard_paths():
                for table in read_tables(path, columns):
                    pairs = [pair for row in table.to_pylist() for pair in documents_of(row)]
                    rows = [dict(zip(_SCHEMA.names, pair, strict=True)) for pair in pairs]
                    writer.write(pa.Table.from_pylist(rows, schema=_SCHEMA))
        return out.finish([("documents", out.commit("documents", writer, rejects, {"documents": writer.rows}))])
