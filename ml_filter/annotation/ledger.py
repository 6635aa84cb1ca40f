"""The ledger: every answer is on disk, under its key, before it counts as done.

SQLite in write-ahead mode, one transaction an answer: a killed process loses nothing it had recorded. The key
holds everything that shapes the answer, so answers to another prompt, model or text are never mixed up.
"""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

_SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    document_id TEXT NOT NULL,
    text_digest TEXT NOT NULL,
    question TEXT NOT NULL,
    vote INTEGER NOT NULL,
    status TEXT NOT NULL,
    tokens INTEGER NOT NULL,
    record TEXT NOT NULL,
    PRIMARY KEY (document_id, text_digest, question, vote)
) WITHOUT ROWID
"""


@dataclass(frozen=True)
class Key:
    """One call: a document by id and text, a question (prompt, annotator and sampling settings), a vote."""

    document_id: str
    text_digest: str
    question: str
    vote: int


class Ledger:
    """The answers of one annotation run. The output directory's lock keeps a second process out."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")
        self._db.execute(_SCHEMA)

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._db.close()

    def record(self, key: Key, row: dict[str, Any]) -> None:
        """Put an annotation on disk. A failed one is replaced when it is asked again; its tokens stay counted."""
        tokens = (row["prompt_tokens"] or 0) + (row["completion_tokens"] or 0)
        self._db.execute(
            "INSERT INTO answers VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET "
            "status = excluded.status, tokens = tokens + excluded.tokens, record = excluded.record",
            (key.document_id, key.text_digest, key.question, key.vote, row["status"], tokens, json.dumps(row)),
        )

    def has_score(self, key: Key) -> bool:
        """Whether this call is finished and needs no second payment."""
        found = self._db.execute(
            "SELECT status FROM answers WHERE document_id = ? AND text_digest = ? AND question = ? AND vote = ?",
            (key.document_id, key.text_digest, key.question, key.vote),
        ).fetchone()
        return found is not None and found[0] == "scored"

    def get(self, key: Key) -> dict[str, Any] | None:
        """The annotation of a call, scored or failed."""
        found = self._db.execute(
            "SELECT record FROM answers WHERE document_id = ? AND text_digest = ? AND question = ? AND vote = ?",
            (key.document_id, key.text_digest, key.question, key.vote),
        ).fetchone()
        return json.loads(found[0]) if found else None

    def tokens_used(self) -> int:
        """Prompt and completion tokens of all answers, also of those that were replaced."""
        return int(self._db.execute("SELECT COALESCE(SUM(tokens), 0) FROM answers").fetchone()[0])

    def counts(self, question: str) -> dict[str, int]:
        """Answers to one question by status."""
        rows = self._db.execute("SELECT status, COUNT(*) FROM answers WHERE question = ? GROUP BY status", (question,))
        return {str(status): int(count) for status, count in rows}
