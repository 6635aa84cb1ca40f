"""A ledger in an SQLite file.

Write-ahead mode, one transaction an answer: a killed process loses nothing that it recorded. A power failure may lose
the answers since the last checkpoint (1,000 pages); `synchronous = FULL` would prevent that, but it limits a run to a
few hundred answers a second.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
from filelock import FileLock, Timeout
from typing_extensions import override

from ml_filter.annotation.ledger.base import Key, Ledger, Paid
from ml_filter.errors import InputError

_SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    document_id TEXT NOT NULL,
    text_digest TEXT NOT NULL,
    question TEXT NOT NULL,
    vote INTEGER NOT NULL,
    window INTEGER NOT NULL,
    windows INTEGER NOT NULL,
    status TEXT NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL,
    record BLOB NOT NULL,
    assumed_prompt_tokens INTEGER NOT NULL DEFAULT 0,
    assumed_completion_tokens INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (document_id, text_digest, question, vote, window)
) WITHOUT ROWID
"""
_TOKENS = ("prompt_tokens", "completion_tokens", "assumed_prompt_tokens", "assumed_completion_tokens")
_COLUMNS = f"document_id, text_digest, question, vote, window, windows, status, record, {', '.join(_TOKENS)}"
_WHERE = "WHERE document_id = ? AND text_digest = ? AND question = ? AND vote = ?"
_DROPPED = -1
"""Window number of the row that keeps the tokens of dropped answers."""


class SqliteLedger(Ledger):
    """A ledger in a local file, locked against a second writer. An answer is saved when `record` returns.

    Raises:
        InputError: another process holds the ledger, or the file is not a ledger.
    """

    def __init__(self, path: Path, *, synchronous: str = "NORMAL") -> None:
        self.path = path
        self._lock = FileLock(f"{path}.lock")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
        except Timeout:
            raise InputError(f"{path} is in use by another run; wait for it, or use another ledger") from None
        except OSError as error:
            raise InputError(f"cannot write the ledger {path}: {error}") from error
        try:
            # Open calls are looked up in a thread while the event loop records answers; SQLite serialises the two.
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._execute("PRAGMA journal_mode = WAL")
            self._execute(f"PRAGMA synchronous = {synchronous}")
            self._execute(_SCHEMA)
            self._execute(f"SELECT {_COLUMNS} FROM answers LIMIT 1")  # fails if the file has other columns
        except sqlite3.Error as error:
            self._lock.release()
            raise InputError(f"cannot open the ledger {path}: {error}") from error
        except InputError:
            self.close()
            raise

    def _execute(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        try:
            return self._db.execute(statement, values).fetchall()
        except sqlite3.DatabaseError as error:
            # SQLITE_ERROR is a statement that does not fit the tables, so the file is not a ledger. Any other
            # operational error (disk full, database locked) passes, and moving the file away would lose paid answers.
            primary_code = error.sqlite_errorcode & 0xFF
            if isinstance(error, sqlite3.OperationalError) and primary_code != sqlite3.SQLITE_ERROR:
                raise InputError(
                    f"cannot read or write the ledger {self.path}: {error}. Its answers are safe, so do not move it: "
                    "free disk space, or close other programs that use it, and run the same command again"
                ) from error
            raise InputError(
                f"{self.path} is not a ledger of annotations, or it is damaged: {error}. Move it away to start over"
            ) from error

    @override
    def close(self) -> None:
        self._db.close()
        self._lock.release()

    @override
    def record(self, key: Key, window: int, row: Mapping[str, Any], assumed: tuple[int, int] = (0, 0)) -> None:
        self._execute(
            f"INSERT INTO answers ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET "
            "windows = excluded.windows, status = excluded.status, record = excluded.record, "
            + ", ".join(f"{name} = {name} + excluded.{name}" for name in _TOKENS),
            (
                *key,
                window,
                row["windows"],
                row["status"],
                orjson.dumps(row),
                row["prompt_tokens"] or 0,
                row["completion_tokens"] or 0,
                *assumed,
            ),
        )

    @override
    def is_worthless(self) -> bool:
        paid = " + ".join(_TOKENS)
        return not self._execute(f"SELECT 1 FROM answers WHERE status <> 'failed' OR {paid} > 0 LIMIT 1")

    @override
    def statuses(self, key: Key) -> dict[int, str]:
        rows = self._execute(f"SELECT window, windows, status FROM answers {_WHERE} AND window >= 0", key)
        statuses = {window: status for window, _, status in rows}
        return {window: statuses.get(window, "open") for window in range(rows[0][1])} if rows else {}

    @override
    def forget(self, key: Key) -> None:
        with self.together():
            self._execute(
                f"INSERT OR REPLACE INTO answers ({_COLUMNS}) SELECT document_id, text_digest, question, vote, "
                f"{_DROPPED}, 0, 'forgotten', '{{}}', {', '.join(f'SUM({name})' for name in _TOKENS)} "
                f"FROM answers {_WHERE} GROUP BY document_id",
                key,
            )
            self._execute(f"DELETE FROM answers {_WHERE} AND window >= 0", key)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Make changes in one transaction: all of them or, after an error, none."""
        self._execute("SAVEPOINT together")
        try:
            yield
        except BaseException:
            self._execute("ROLLBACK TO together")
            raise
        finally:
            self._execute("RELEASE together")

    @override
    def answers(self, key: Key) -> tuple[list[dict[str, Any]], Paid]:
        rows = self._execute(
            "SELECT window, record, prompt_tokens, completion_tokens, assumed_prompt_tokens + "
            f"assumed_completion_tokens FROM answers {_WHERE} ORDER BY window",
            key,
        )
        paid = Paid(*(sum(row[column] for row in rows) for column in (2, 3, 4)))
        return [orjson.loads(row[1]) for row in rows if row[0] != _DROPPED], paid

    @override
    def tokens_used(self, questions: Sequence[str]) -> tuple[int, int]:
        marks = ", ".join("?" * len(questions))
        [row] = self._execute(
            "SELECT COALESCE(SUM(prompt_tokens + assumed_prompt_tokens), 0), "
            "COALESCE(SUM(completion_tokens + assumed_completion_tokens), 0) FROM answers "
            f"WHERE question IN ({marks})",
            tuple(questions),
        )
        return int(row[0]), int(row[1])
