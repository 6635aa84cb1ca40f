"""Rows of a finished directory, and documents that are made of them, such as those that an LLM is asked about."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import accumulate, islice
from typing import Any, Generic, TypeVar

import pyarrow as pa

from ml_filter.documents.manifest import Manifest, Parent
from ml_filter.documents.output_directory import OutputDirectory
from ml_filter.documents.readers import InputShard, read_tables
from ml_filter.errors import InputError

Value = TypeVar("Value")
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


class Beside(Generic[Value]):
    """Reads what belongs to the rows of a directory and is in their order, such as their ratings, table by table.

    Args:
        values: the id of each row and what belongs to it.
        shards: those of the rows; a resumed run may skip some.
        place: where the values are, for the error.
    """

    def __init__(self, values: Iterable[tuple[str, Value]], shards: Sequence[InputShard], place: str) -> None:
        self._values, self._place, self._position = iter(values), place, 0
        ends = accumulate(shard.rows or 0 for shard in shards)
        self._starts = {shard.name: end - (shard.rows or 0) for shard, end in zip(shards, ends, strict=True)}

    def read(self, shard: InputShard, offset: int, ids: Sequence[str]) -> list[Value]:
        """What belongs to the rows of a table, which begins at `offset` of the shard.

        Raises:
            InputError: something belongs to another row.
        """
        start = self._starts[shard.name] + offset
        following = list(islice(self._values, start - self._position, start - self._position + len(ids)))
        if [name for name, _ in following] != list(ids):
            raise InputError(f"the rows of {self._place} are not in the order of those that they belong to")
        self._position = start + len(ids)
        return [value for _, value in following]
