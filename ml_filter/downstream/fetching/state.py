"""What was fetched and what is to be fetched next, in an SQLite file that survives a kill.

A response is recorded in one transaction: its documents, its rejects, the requests that it leads to, and that it is
done. What is recorded is on the disk (`synchronous = FULL`), so that a killed run repeats at most the requests that
were under way. Texts stay here until they are in a shard of the output.

A round begins with the sources and ends when nothing is left to request, perhaps several runs later. Each URL is
requested once in a round.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from threading import RLock
from typing import Any
from urllib.parse import urlsplit

import zstandard
from filelock import FileLock, Timeout

from ml_filter.documents.manifest import digest_of
from ml_filter.documents.readers import text_id
from ml_filter.downstream.fetching.items import Document, Reject, Request
from ml_filter.errors import InputError

_SCHEMA = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS requests (
    name TEXT PRIMARY KEY,          -- Request.name
    request TEXT NOT NULL,          -- as JSON
    host TEXT NOT NULL,
    round INTEGER NOT NULL,         -- in which it was last wanted
    number INTEGER NOT NULL,        -- its place in the order of requests
    is_pending INTEGER NOT NULL,
    is_list INTEGER NOT NULL,
    parent TEXT,                    -- the request whose response led to it
    outcome TEXT,                   -- ok or rejected; null: never requested
    etag TEXT,
    last_modified TEXT,
    version TEXT                    -- of what was fetched
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS pending ON requests (host, number) WHERE is_pending;
CREATE INDEX IF NOT EXISTS children ON requests (parent);
CREATE TABLE IF NOT EXISTS documents (
    number INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,       -- Document.key
    owner TEXT NOT NULL,            -- the request that it is from
    digest TEXT NOT NULL,           -- of text and facts
    shard TEXT,                     -- of the output; null: in none yet
    row BLOB                        -- the row, while the shard does not have it
);
CREATE INDEX IF NOT EXISTS owners ON documents (owner);
CREATE INDEX IF NOT EXISTS shards ON documents (shard, number);
CREATE TABLE IF NOT EXISTS rejects (
    owner TEXT NOT NULL, url TEXT NOT NULL, source TEXT NOT NULL, reason TEXT NOT NULL, detail TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS reject_owners ON rejects (owner);
"""
_MAX_REJECTS = 10_000
"""Rejects that are listed for one response; a hostile list could have millions."""


_MAX_MEMORY = 8 * 2**20
"""Bytes of the items of a response that are held in memory."""


class State:
    """The state of one output directory, locked against a second run.

    Args:
        pinned: a digest of the settings that must not change.

    Raises:
        InputError: another run uses it, it belongs to other settings, or it is not a state.
    """

    def __init__(self, path: Path, pinned: str) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(f"{path}.lock")
        self._mutex = RLock()
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise InputError(f"{path} is in use by another run; wait for it, or choose another --output") from None
        try:
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.executescript(_SCHEMA)
            has_begun = self._db.execute("SELECT 1 FROM requests LIMIT 1").fetchone() is not None
            earlier = self._fact("pinned") if has_begun else None  # a run with a wrong setting leaves nothing
        except sqlite3.Error as error:
            self._lock.release()
            raise InputError(f"{path} is not the state of a fetch, or it is damaged: {error}") from error
        if earlier not in (None, pinned):
            self.close()
            raise InputError(
                f"{path} belongs to other sources or settings; choose another --output, or delete it and its directory "
                "to start over"
            )
        self._set_fact("pinned", pinned)

    def close(self) -> None:
        """Close the file and release its lock."""
        self._db.close()
        self._lock.release()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._mutex:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def _fact(self, name: str) -> str | None:
        row = self._db.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return row[0] if row else None

    def _set_fact(self, name: str, value: Any) -> None:
        self._db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, str(value)))

    # --- Requests ----------------------------------------------------------------------------------------------------

    @property
    def round(self) -> int:
        """The number of the current round."""
        return int(self._fact("round") or 0)

    @property
    def pending(self) -> int:
        """How many requests are left in this round."""
        return int(self._db.execute("SELECT COUNT(*) FROM requests WHERE is_pending").fetchone()[0])

    def begin(self, sources: Iterable[tuple[Request, bool]]) -> bool:
        """Begin a round with these requests (and whether each is for a list), unless one is under way.

        What failed and is not sure to be named again is requested again too: lists, and what has a version, such as a
        paper on a further page of a list, which is not read while the first page has nothing new.
        """
        if self.pending:
            return False
        with self._transaction():
            self._set_fact("round", self.round + 1)
            self._db.execute(
                "UPDATE requests SET is_pending = 1, round = ? "
                "WHERE outcome = 'rejected' AND (is_list OR version IS NOT NULL)",
                (self.round,),
            )
            for request, is_list in sources:
                self._want(request, None, is_list)
        return True

    def hosts(self) -> Iterator[str]:
        """The hosts with pending requests, each found by one look-up in the index when it is asked for."""
        host = ""
        query = "SELECT host FROM requests WHERE is_pending AND host > ? ORDER BY host LIMIT 1"
        while True:
            with self._mutex:
                row = self._db.execute(query, (host,)).fetchone()
            if row is None:
                return
            host = row[0]
            yield host

    def next(self, host: str) -> Request | None:
        """The next pending request to a host, in the order in which they were found."""
        with self._mutex:
            row = self._db.execute(
                "SELECT request FROM requests WHERE is_pending AND host = ? ORDER BY number LIMIT 1", (host,)
            ).fetchone()
        return Request(**json.loads(row[0])) if row else None

    def validators(self, request: Request) -> dict[str, str]:
        """The headers that ask for the content only if it has changed since it was fetched."""
        with self._mutex:
            row = self._db.execute(
                "SELECT etag, last_modified FROM requests WHERE name = ? AND outcome = 'ok'", (request.name,)
            ).fetchone()
        names = ("If-None-Match", "If-Modified-Since")
        return {name: value for name, value in zip(names, row or (), strict=False) if value}

    def _is_known(self, name: str) -> bool:
        return self._db.execute("SELECT 1 FROM requests WHERE name = ?", (name,)).fetchone() is not None

    def _want(self, request: Request, parent: str | None, is_list: bool) -> str:
        """Add a request to the round; returns whether it is `new`, `known` (fetched in this version) or `again`."""
        row = self._db.execute(
            "SELECT round, version, outcome FROM requests WHERE name = ?", (request.name,)
        ).fetchone()
        is_current = row is not None and request.version is not None and row[1:] == (request.version, "ok")
        if row is not None and (row[0] == self.round or is_current):
            self._db.execute("UPDATE requests SET round = ? WHERE name = ?", (self.round, request.name))
            return "known" if is_current else "again"
        number = int(self._fact("number") or 0) + 1
        self._set_fact("number", number)
        values = (
            json.dumps(asdict(request)),
            urlsplit(request.url).netloc.lower(),
            self.round,
            number,
            is_list,
            parent,
        )
        self._db.execute(
            "INSERT INTO requests (name, request, host, round, number, is_pending, is_list, parent) "
            "VALUES (?, ?, ?, ?, ?, 1, ?, ?) ON CONFLICT DO UPDATE SET request = excluded.request, "
            "host = excluded.host, round = excluded.round, number = excluded.number, is_pending = 1, "
            "is_list = excluded.is_list, parent = excluded.parent",
            (request.name, *values),
        )
        return "new" if row is None or row[1] != request.version else "again"

    # --- Responses ---------------------------------------------------------------------------------------------------

    def record(
        self,
        request: Request,
        items: Iterable[tuple[Any, bool]],
        fetched_at: str,
        headers: Mapping[str, str] | None = None,
    ) -> Counter[str]:
        """Record what a response gave: documents, rejects, and requests with whether each is for a list.

        If its end is missing, what it does not name is not gone, and the next round requests it again.

        Returns:
            How many documents are `new`, `changed` or `unchanged`, rejects by reason as `rejected_REASON`, and
            `skipped`, requests that are known in this version.
        """
        counts: Counter[str] = Counter()
        next_pages: list[tuple[Request, bool]] = []
        keys: set[str] = set()
        headers = headers or {}
        is_new = leads_on = is_cut = False
        # Read before the lock is taken, which all hosts need: a text or an archive may take seconds.
        with _kept(items) as kept, self._transaction():
            self._db.execute("DELETE FROM rejects WHERE owner = ?", (request.name,))
            for item, is_list in kept:
                if isinstance(item, Document):
                    keys.add(item.key)
                    outcome = self._put(request, item, fetched_at, headers.get("etag"))
                    counts[outcome] += 1
                    is_new |= outcome != "unchanged"
                elif isinstance(item, Reject):
                    self._reject(request, item, counts)
                    is_cut |= item.ends_response
                elif item.only_if_new:
                    next_pages.append((item, is_list))
                else:
                    leads_on = True
                    wanted = self._want(item, request.name, is_list)
                    counts["skipped"] += wanted == "known"
                    is_new |= wanted == "new"
            for item, is_list in next_pages:
                if is_new or not self._is_known(item.name):  # unknown: the list may be longer than before
                    self._want(item, request.name, is_list)
            if not is_cut:
                self._drop_others(request, keys, counts)
            is_ok = bool(keys) or leads_on or not any(name.startswith("rejected_") for name in counts)
            self._done(request, "ok" if is_ok and not is_cut else "rejected", headers)
        return counts

    def _put(self, request: Request, document: Document, fetched_at: str, etag: str | None) -> str:
        facts = {**request.facts, **document.facts}
        facts = {name: _storable(value) for name, value in facts.items() if value}
        row = {
            "id": text_id(document.key),
            "text": document.text,
            "url": document.url,
            "source": request.source,
            **{name: facts.get(name) for name in ("language", "title", "license", "published")},
        }
        digest = digest_of(row)
        earlier = self._db.execute("SELECT digest FROM documents WHERE key = ?", (document.key,)).fetchone()
        owner = document.owner or request.name
        if earlier and earlier[0] == digest:
            self._db.execute("UPDATE documents SET owner = ? WHERE key = ?", (owner, document.key))
            return "unchanged"
        blob = zstandard.compress(json.dumps({**row, "etag": etag, "fetched_at": fetched_at}).encode(), 3)
        self._db.execute(
            "INSERT INTO documents (key, owner, digest, row) VALUES (?, ?, ?, ?) ON CONFLICT (key) DO UPDATE SET "
            "owner = excluded.owner, digest = excluded.digest, row = excluded.row",
            (document.key, owner, digest, blob),
        )
        return "changed" if earlier else "new"

    def _reject(self, request: Request, reject: Reject, counts: Counter[str]) -> None:
        counts[f"rejected_{reject.reason}"] += 1
        if counts.total() <= _MAX_REJECTS:
            row = (request.name, _storable(reject.url), request.source, reject.reason, _storable(reject.detail[:500]))
            self._db.execute("INSERT INTO rejects VALUES (?, ?, ?, ?, ?)", row)

    def _drop_others(self, request: Request, keys: set[str], counts: Counter[str]) -> None:
        """Delete earlier documents of the request that its present response does not have."""
        if not keys:
            return
        for (key,) in self._db.execute("SELECT key FROM documents WHERE owner = ?", (request.name,)).fetchall():
            if key not in keys:
                self._db.execute("DELETE FROM documents WHERE key = ?", (key,))
                counts["gone"] += 1

    def _done(self, request: Request, outcome: str, headers: Mapping[str, str]) -> None:
        self._db.execute(
            "UPDATE requests SET is_pending = 0, outcome = ?, etag = ?, last_modified = ?, version = ? WHERE name = ?",
            (outcome, headers.get("etag"), headers.get("last-modified"), request.version, request.name),
        )

    def record_unchanged(self, request: Request, is_list: bool) -> None:
        """Record that the content is as it was; what a list named is requested again."""
        with self._transaction():
            self._db.execute(
                "UPDATE requests SET is_pending = 0, version = ? WHERE name = ?", (request.version, request.name)
            )
            if is_list:
                self._db.execute(
                    "UPDATE requests SET is_pending = 1, round = ? WHERE parent = ? AND round < ? "
                    "AND (version IS NULL OR outcome IS NOT 'ok')",
                    (self.round, request.name, self.round),
                )

    def record_reject(self, request: Request, reject: Reject) -> None:
        """Record that a request gave nothing. Documents that it gave earlier stay."""
        with self._transaction():
            self._db.execute("DELETE FROM rejects WHERE owner = ?", (request.name,))
            self._reject(request, reject, Counter())
            self._done(request, "rejected", {})

    # --- Output ------------------------------------------------------------------------------------------------------

    def assign_shards(self, size: int) -> None:
        """Give each document without a shard the last one that has room, or a new one."""
        with self._transaction():
            last = self._db.execute(
                "SELECT shard, COUNT(*) FROM documents GROUP BY shard ORDER BY shard DESC"
            ).fetchone()
            number = int(self._fact("shard") or 0)
            room = size - last[1] if last and last[0] == _shard(number) and number else 0
            for (document,) in self._db.execute("SELECT number FROM documents WHERE shard IS NULL").fetchall():
                if room <= 0:
                    number, room = number + 1, size
                self._db.execute("UPDATE documents SET shard = ? WHERE number = ?", (_shard(number), document))
                room -= 1
            self._set_fact("shard", number)

    def shard_states(self) -> dict[str, str]:
        """By name of each shard, a digest of the documents in it."""
        digests: dict[str, Any] = {}
        for shard, number, digest in self._db.execute(
            "SELECT shard, number, digest FROM documents WHERE shard IS NOT NULL ORDER BY shard, number"
        ):
            digests.setdefault(shard, hashlib.sha256()).update(f"{number} {digest}\n".encode())
        return {shard: digest.hexdigest() for shard, digest in digests.items()}

    def rows(self, shard: str) -> Iterator[tuple[str, dict[str, Any] | None]]:
        """The id of each document of a shard, and its row unless the shard has it."""
        for key, blob in self._db.execute("SELECT key, row FROM documents WHERE shard = ? ORDER BY number", (shard,)):
            yield text_id(key), json.loads(zstandard.decompress(blob)) if blob is not None else None

    def rejects(self) -> Iterator[tuple[str, str, str, str]]:
        """Source, URL, reason and detail of each reject, in a fixed order."""
        yield from self._db.execute("SELECT source, url, reason, detail FROM rejects ORDER BY owner, rowid")

    def forget_rows(self) -> None:
        """Delete the texts, which are in the shards now."""
        with self._transaction():
            self._db.execute("UPDATE documents SET row = NULL WHERE row IS NOT NULL")


@contextmanager
def _kept(items: Iterable[tuple[Any, bool]]) -> Iterator[Iterator[tuple[Any, bool]]]:
    """The items after all of them were read; of a long list, most are in a temporary file meanwhile."""
    with tempfile.SpooledTemporaryFile(_MAX_MEMORY) as file:
        count = 0
        for item in items:
            pickle.dump(item, file, pickle.HIGHEST_PROTOCOL)
            count += 1
        file.seek(0)
        yield (pickle.load(file) for _ in range(count))  # noqa: S301 - written above


def _storable(value: Any) -> str:
    """The value as text that can be encoded as UTF-8: JSON and archives may hold lone surrogates."""
    return str(value).encode("utf-8", "replace").decode()


def _shard(number: int) -> str:
    return f"documents-{number:05}"
