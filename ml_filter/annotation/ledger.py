"""The ledger: every answer is on disk, under its key, before it counts as done.

SQLite in write-ahead mode, one transaction an answer: a killed process loses nothing it had recorded. A machine that
loses power may lose the latest answers, at most those since the last checkpoint (1,000 pages): to wait for the disk
after each (`synchronous = FULL`) would leave some hundred answers a second. The key holds everything that shapes the
answer, so answers to another prompt, model or text are never mixed up.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import orjson
from filelock import FileLock, Timeout

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
_LATER_COLUMNS = ("assumed_prompt_tokens", "assumed_completion_tokens")
_TOKEN_COLUMNS = ("prompt_tokens", "completion_tokens", *_LATER_COLUMNS)
_WHERE = "WHERE document_id = ? AND text_digest = ? AND question = ? AND vote = ?"
_FORGOTTEN = -1
"""The window under which the tokens of answers that were dropped stay counted."""


class Key(NamedTuple):
    """A document by id and text, a question (prompt, annotator and sampling settings) and a vote."""

    document_id: str
    text_digest: str
    question: str
    vote: int


class Paid(NamedTuple):
    """Tokens that answers have cost: as the server reported them, and more at most for tries it said nothing about."""

    prompt: int
    completion: int
    assumed: int


class Ledger:
    """The answers of one annotation run or, shared, of several one after the other: a second writer is refused.

    Raises:
        InputError: another process has the ledger, or the file is no ledger.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = FileLock(f"{path}.lock")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
        except Timeout:
            raise InputError(f"{path} is in use by another run; wait for it or give this one its own ledger") from None
        except OSError as error:
            raise InputError(f"the ledger {path} cannot be written: {error}") from error
        try:
            # Calls are read in a thread of their own while answers are recorded; SQLite serialises the two.
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._execute("PRAGMA journal_mode = WAL")
            self._execute("PRAGMA synchronous = NORMAL")
            self._execute(_SCHEMA)
            self._execute(f"SELECT vote, windows, status, record FROM answers {_WHERE} LIMIT 1", ("", "", "", 0))
            self._add_later_columns()
        except sqlite3.Error as error:
            self._lock.release()
            raise InputError(f"the ledger {path} cannot be opened: {error}") from error
        except InputError:
            self.close()
            raise

    def _execute(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        try:
            return self._db.execute(statement, values).fetchall()
        except sqlite3.OperationalError as error:
            if _error_kind(error) != sqlite3.SQLITE_ERROR:
                raise InputError(
                    f"the ledger {self.path} could not be read or written: {error}. The answers in it are kept, so do "
                    "not move it: free space on its disk, or end what else has it open, and run the same command again"
                ) from error
            raise self._no_ledger(error) from error
        except sqlite3.DatabaseError as error:
            raise self._no_ledger(error) from error

    def _no_ledger(self, error: sqlite3.DatabaseError) -> InputError:
        return InputError(
            f"{self.path} is not, or not any more, a ledger of annotations: {error}. Move it away to begin anew"
        )

    def _add_later_columns(self) -> None:
        """Of a ledger that an earlier version wrote."""
        there = {column[1] for column in self._execute("PRAGMA table_info(answers)")}
        for name in _LATER_COLUMNS:
            if name not in there:
                self._execute(f"ALTER TABLE answers ADD COLUMN {name} INTEGER NOT NULL DEFAULT 0")

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Let the file go."""
        self._db.close()
        self._lock.release()

    def record(self, key: Key, window: int, row: Mapping[str, Any], assumed: tuple[int, int] = (0, 0)) -> None:
        """Put the answer about one window on disk. A failed one is replaced when it is asked again; its tokens stay
        counted.

        Args:
            row: the annotation's fields; `windows` says how many windows the document has.
            assumed: prompt and completion tokens that may have been used as well, without a word of the server.
        """
        self._execute(
            "INSERT INTO answers (document_id, text_digest, question, vote, window, windows, status, record, "
            f"{', '.join(_TOKEN_COLUMNS)}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET "
            "windows = excluded.windows, status = excluded.status, record = excluded.record, "
            + ", ".join(f"{name} = {name} + excluded.{name}" for name in _TOKEN_COLUMNS),
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

    def is_worthless(self) -> bool:
        """Whether nothing in it is an answer or may have cost anything: it is empty, or all was refused."""
        paid = " + ".join(_TOKEN_COLUMNS)
        return not self._execute(f"SELECT 1 FROM answers WHERE status <> 'failed' OR {paid} > 0 LIMIT 1")

    def statuses(self, key: Key) -> dict[int, str]:
        """`scored`, `failed` or, for a window without an answer, `open`; empty before the first answer."""
        rows = self._execute(f"SELECT window, windows, status FROM answers {_WHERE} AND window >= 0", key)
        found = {window: status for window, _, status in rows}
        return {window: found.get(window, "open") for window in range(rows[0][1])} if rows else {}

    def forget(self, key: Key) -> None:
        """Drop the answers to a call whose document is cut into other windows now; their tokens stay counted."""
        with self._db:  # both statements or none
            self._execute("BEGIN")
            self._execute(
                "INSERT OR REPLACE INTO answers (document_id, text_digest, question, vote, window, windows, status, "
                f"record, {', '.join(_TOKEN_COLUMNS)}) SELECT document_id, text_digest, question, vote, "
                f"{_FORGOTTEN}, 0, 'forgotten', '{{}}', {', '.join(f'SUM({name})' for name in _TOKEN_COLUMNS)} "
                f"FROM answers {_WHERE} GROUP BY document_id",
                key,
            )
            self._execute(f"DELETE FROM answers {_WHERE} AND window >= 0", key)
            self._execute("COMMIT")

    def answers(self, key: Key) -> tuple[list[dict[str, Any]], Paid]:
        """The answers to a call, in the order of the windows, and what all of them have cost, also those that were
        replaced or dropped."""
        found = self._execute(
            "SELECT window, record, prompt_tokens, completion_tokens, assumed_prompt_tokens + "
            f"assumed_completion_tokens FROM answers {_WHERE} ORDER BY window",
            key,
        )
        paid = Paid(*(sum(row[place] for row in found) for place in (2, 3, 4)))
        return [orjson.loads(row[1]) for row in found if row[0] >= 0], paid

    def rows(self, key: Key) -> list[dict[str, Any]]:
        """The answers to a call, in the order of the windows."""
        return self.answers(key)[0]

    def paid(self, key: Key) -> Paid:
        """What all answers to a call have cost, also those that were replaced or dropped."""
        return self.answers(key)[1]

    def tokens_used(self, questions: Sequence[str]) -> tuple[int, int]:
        """Most prompt and completion tokens that all answers to some questions have cost, as `paid`."""
        marks = ", ".join("?" * len(questions))
        [row] = self._execute(
            "SELECT COALESCE(SUM(prompt_tokens + assumed_prompt_tokens), 0), "
            "COALESCE(SUM(completion_tokens + assumed_completion_tokens), 0) FROM answers "
            f"WHERE question IN ({marks})",
            tuple(questions),
        )
        return int(row[0]), int(row[1])


def _error_kind(error: sqlite3.Error) -> int:
    """SQLite's primary result code, such as SQLITE_FULL; SQLITE_ERROR is a statement that does not fit the tables."""
    return error.sqlite_errorcode & 0xFF


class SeenIds:
    """The ids of one pass over the documents, in a temporary file, so that memory stays flat."""

    def __init__(self) -> None:
        self._db = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode = OFF")
        self._db.execute("CREATE TABLE seen (id TEXT PRIMARY KEY) WITHOUT ROWID")

    def add(self, document_id: str) -> bool:
        """Whether the id comes for the first time."""
        return self._db.execute("INSERT OR IGNORE INTO seen VALUES (?)", (document_id,)).rowcount == 1

    def close(self) -> None:
        """Delete the file."""
        self._db.close()
