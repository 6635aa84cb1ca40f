"""Write files that are complete or absent, whenever the process or the machine stops."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from types import TracebackType

import pyarrow as pa
import pyarrow.parquet as pq

from ml_filter.documents.tables import cast_table, union_schema
from ml_filter.location import Location

ROW_GROUP_BYTES = 32 * 2**20


class ShardWriter:
    """Writes tables to one Parquet file, which gets its name only when it is complete.

    Sources without a schema (JSON lines) may bring new columns or types later in a shard. The file so far is then
    copied to the wider schema: new columns are null before, values of types that cannot be combined become JSON text.
    """

    def __init__(self, path: Path, schema: pa.Schema | None = None, row_group_bytes: int | None = None) -> None:
        self.path, self.schema = path, schema
        self.row_group_bytes = row_group_bytes or ROW_GROUP_BYTES
        self.rows = 0
        self._writer: pq.ParquetWriter | None = None
        self._pending: list[pa.Table] = []
        self._pending_bytes = 0
        self._temporary = path.with_name(f".{path.name}.tmp")

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        try:
            if kind is None:
                self._flush()
                if self._writer is None and self.schema is not None:
                    self._open(self.schema)
        finally:
            if self._writer is not None:
                self._writer.close()
        if kind is None and self._temporary.exists():
            # Without fsync, a rename can reach the disk before the content does, and a crash leaves an empty file.
            with self._temporary.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(self._temporary, self.path)
        else:
            self._temporary.unlink(missing_ok=True)

    def write(self, table: pa.Table) -> None:
        """Append a table of documents."""
        if table.num_rows == 0:
            return
        self._pending.append(table)
        self._pending_bytes += table.nbytes
        self.rows += table.num_rows
        if self._pending_bytes >= self.row_group_bytes:
            self._flush()

    def _flush(self) -> None:
        for table in self._pending:
            if self.schema is None or not _fits(table.schema, self.schema):
                self._widen(table.schema)
        if self._pending:
            assert self.schema is not None
            writer = self._writer or self._open(self.schema)
            writer.write_table(pa.concat_tables([cast_table(table, self.schema) for table in self._pending]))
        self._pending, self._pending_bytes = [], 0

    def _open(self, schema: pa.Schema) -> pq.ParquetWriter:
        self._writer = pq.ParquetWriter(self._temporary, schema, compression="zstd")
        return self._writer

    def _widen(self, incoming: pa.Schema) -> None:
        wider = incoming if self.schema is None else union_schema(self.schema, incoming)
        if wider == self.schema:
            return
        if self._writer is not None:
            self._writer.close()
            narrow = self._temporary.with_suffix(".narrow")
            os.replace(self._temporary, narrow)
            writer = self._open(wider)
            with pq.ParquetFile(narrow) as file:
                for group in range(file.num_row_groups):
                    writer.write_table(cast_table(file.read_row_group(group), wider))
            narrow.unlink()
        self.schema = wider


def _fits(schema: pa.Schema, into: pa.Schema) -> bool:
    return all(
        (position := into.get_field_index(field.name)) >= 0
        and (into.field(position).type == field.type or pa.types.is_null(field.type))
        for field in schema
    )


def file_digest(file: Path | Location) -> str:
    """SHA-256 of a file, read in blocks."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
