"""Give each document of several shards a unique id.

Shards of other tools often count their rows from 0, so that different documents have the same id. The first keeps it; a
document with the same id and another text gets the name of its shard added, as in `17@part-3f9c02ab41de`. Whatever
joins documents by id reads them with the functions here, so that the same document has the same id everywhere.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from itertools import repeat

import pyarrow as pa
import pyarrow.compute as pc

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.readers import InputShard, read_shard, text_id
from ml_filter.documents.rejects import RejectsLog


class UniqueIds:
    """Remembers the ids seen so far, in a temporary SQLite file, so that memory stays flat.

    Attributes:
        renamed: number of documents that got another id.

    Args:
        wanted: the ids that the caller looks for; the ids of other documents stay as they are and are not remembered.
    """

    def __init__(self, wanted: Iterable[str] | None = None) -> None:
        self.renamed = 0
        self._wanted = None if wanted is None else {name for id_ in wanted for name in (id_, id_.rpartition("@")[0])}
        self._seen = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._seen.execute("PRAGMA journal_mode = OFF")
        self._seen.execute("CREATE TABLE seen (id TEXT PRIMARY KEY, text TEXT) WITHOUT ROWID")

    def __enter__(self) -> UniqueIds:
        return self

    def __exit__(self, *_: object) -> None:
        self._seen.close()

    def resolve(self, table: pa.Table, shards: Iterable[str]) -> tuple[pa.Table, list[bool]]:
        """The documents with unique ids, and for each whether it is new: not the same as an earlier one.

        Args:
            shards: the name of each document's shard.
        """
        results = list(map(self._resolve, table["id"].to_pylist(), table["text"].to_pylist(), shards))
        ids = pa.array([document_id for document_id, _ in results], pa.string())
        return table.set_column(table.column_names.index("id"), "id", ids), [is_new for _, is_new in results]

    def _resolve(self, document_id: str, text: str, shard: str) -> tuple[str, bool]:
        if self._wanted is not None and document_id not in self._wanted:
            return document_id, True
        unique, number, digest = document_id, 1, text_id(text)
        while self._seen.execute("INSERT OR IGNORE INTO seen VALUES (?, ?)", (unique, digest)).rowcount == 0:
            if self._seen.execute("SELECT text FROM seen WHERE id = ?", (unique,)).fetchone()[0] == digest:
                return unique, False
            unique = f"{document_id}@{shard}" if number == 1 else f"{document_id}@{shard}-{number}"
            number += 1
        self.renamed += unique != document_id
        return unique, True

    def read(
        self, shards: Sequence[InputShard], source: SourceConfig, rejects: RejectsLog
    ) -> Iterator[tuple[InputShard, pa.Table, list[bool]]]:
        """The documents of the shards in tables, also blank ones with an id: they have it when they are annotated."""
        for shard in shards:
            for table in read_shard(shard, source, rejects, keep_blank=True):
                resolved, is_new = self.resolve(table, repeat(shard.name))
                rejects.renamed_ids = self.renamed
                yield shard, resolved, is_new


def find_documents(shards: Sequence[InputShard], source: SourceConfig, wanted: Iterable[str]) -> Iterator[pa.Table]:
    """All documents with a text. Those that are wanted have the ids that they were annotated with."""
    with UniqueIds(wanted) as ids:
        for _, table, _ in ids.read(shards, source, RejectsLog()):
            yield table.filter(pc.not_equal(table["text"], ""))
