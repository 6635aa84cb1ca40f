"""A ledger in a MongoDB collection, for runs whose steps share no disk.

Each key has one document, with the answers by window and the tokens that all answers have cost, so that every change is
one atomic operation. Answers are written by a thread, many at once, as soon as the write before is done: a kill loses
those that arrived during one round trip. Operations are numbered, and a document remembers the last one, so that a
write that is repeated after a lost connection counts its tokens once.

A lease keeps a second writer out. It is renewed while the ledger is open and expires after a kill. Its number
grows with every owner and begins every operation's number, so that an owner who lost it cannot overwrite what the next
one wrote; it stops as soon as it cannot renew.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
from loguru import logger
from typing_extensions import override

from ml_filter.annotation.ledger.base import Key, Ledger, Paid
from ml_filter.config import Settings
from ml_filter.errors import InputError, MlFilterError
from ml_filter.mongodb import mongodb_errors, opened_collection

LEASES = "ml_filter_leases"
_BATCH = 1000
_MAX_UNSAVED = 5000
_RETRY_S = 0.5
_TOKENS = ("prompt_tokens", "completion_tokens", "assumed_prompt_tokens", "assumed_completion_tokens")
_EXPIRED = datetime(1970, 1, 1, tzinfo=UTC)
_FENCE = 2**40
_DUPLICATE_KEY = 11000


class MongoLedger(Ledger):
    """A ledger at `mongodb://HOST/DATABASE.COLLECTION`.

    Raises:
        InputError: another run holds the ledger, or the server cannot be reached or refuses.
    """

    def __init__(self, location: str, lease_s: float | None = None) -> None:
        settings = Settings()
        self.location, self._lease_s = location, lease_s or settings.lease_s
        self._changed = threading.Condition()
        self._unsaved: deque[tuple[Key, dict[str, Any]]] = deque()
        self._keys: dict[Key, int] = {}
        """How many operations of a key are not saved yet."""
        self._error: MlFilterError | None = None
        self._is_closing = False
        self._number = 0
        with ExitStack() as stack:
            self._answers = stack.enter_context(opened_collection(location, settings))
            self._leases = self._answers.database[LEASES]
            self._answers.create_index([(name, 1) for name in Key._fields], unique=True)
            self._answers.create_index("question")
            self._fence = self._take_lease()
            self._context = stack.pop_all()
        self._writer = threading.Thread(target=self._write, name="ledger", daemon=True)
        self._writer.start()

    # --- Answers -----------------------------------------------------------------------------------------------------

    @override
    def record(self, key: Key, window: int, row: Mapping[str, Any], assumed: tuple[int, int] = (0, 0)) -> None:
        answer = {"status": row["status"], "record": orjson.dumps(row).decode()}
        tokens = (row["prompt_tokens"] or 0, row["completion_tokens"] or 0, *assumed)
        worth = {} if row["status"] == "failed" else {"has_answer": True}
        self._add(
            key,
            {
                "$set": {f"answers.{window}": answer, "windows": row["windows"], **worth},
                "$inc": dict(zip(_TOKENS, tokens, strict=True)),
            },
        )

    @override
    def forget(self, key: Key) -> None:
        self._add(key, {"$unset": {"answers": 1, "windows": 1}, "$inc": dict.fromkeys(_TOKENS, 0)})

    def _add(self, key: Key, update: dict[str, Any]) -> None:
        with self._changed:
            if self._error:
                raise self._error
            self._number += 1
            numbered = {**update, "$set": {**update.get("$set", {}), "last": self._fence * _FENCE + self._number}}
            self._unsaved.append((key, numbered))
            self._keys[key] = self._keys.get(key, 0) + 1
            self._changed.notify_all()

    def _find(self, key: Key) -> Mapping[str, Any]:
        with self._changed:
            self._changed.wait_for(lambda: key not in self._keys or self._error is not None)
            if self._error:
                raise self._error
        with mongodb_errors(self.location):
            return self._answers.find_one(key._asdict()) or {}

    @override
    def statuses(self, key: Key) -> dict[int, str]:
        document = self._find(key)
        answers = document.get("answers", {})
        return {
            window: answers[str(window)]["status"] if str(window) in answers else "open"
            for window in range(document.get("windows", 0))
        }

    @override
    def answers(self, key: Key) -> tuple[list[dict[str, Any]], Paid]:
        document = self._find(key)
        answers = document.get("answers", {})
        prompt, completion, *assumed = (document.get(name, 0) for name in _TOKENS)
        rows = [orjson.loads(answers[window]["record"]) for window in sorted(answers, key=int)]
        return rows, Paid(prompt, completion, sum(assumed))

    @override
    def tokens_used(self, questions: Sequence[str]) -> tuple[int, int]:
        self.flush()
        sums = {name: {"$sum": f"${name}"} for name in _TOKENS}
        with mongodb_errors(self.location):
            found = list(
                self._answers.aggregate(
                    [{"$match": {"question": {"$in": list(questions)}}}, {"$group": {"_id": None, **sums}}]
                )
            )
        prompt, completion, more_prompt, more_completion = ((found or [{}])[0].get(name, 0) for name in _TOKENS)
        return prompt + more_prompt, completion + more_completion

    @override
    def is_worthless(self) -> bool:
        self.flush()
        paid = [{name: {"$gt": 0}} for name in _TOKENS]
        with mongodb_errors(self.location):
            return self._answers.find_one({"$or": [{"has_answer": True}, *paid]}, ["_id"]) is None

    # --- Saving ------------------------------------------------------------------------------------------------------

    @override
    def has_room(self) -> bool:
        if self._error:
            raise self._error
        return len(self._unsaved) < _MAX_UNSAVED

    @override
    def wait_for_room(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: len(self._unsaved) < _MAX_UNSAVED or self._error is not None)
        self.has_room()

    @override
    def flush(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._keys or self._error is not None)
        self.has_room()

    @override
    def close(self) -> None:
        with self._context:
            try:
                self.flush()
            finally:
                with self._changed:
                    self._is_closing = True
                    self._changed.notify_all()
                self._writer.join()
            self._leases.update_one(self._own_lease, {"$set": {"until": _EXPIRED}})

    def _write(self) -> None:
        """Save what is recorded and renew the lease, until the ledger is closed or the lease is lost."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._unsaved) or self._is_closing, self._lease_s / 3)
                if self._is_closing:
                    return
                batch = self._next_batch()
            try:
                self._save(batch)
            except Exception as error:  # also a defect must not leave the run waiting for ever
                lost = f"{self.location}: {type(error).__name__}: {error}"
                with self._changed:
                    self._error = error if isinstance(error, MlFilterError) else InputError(lost)
                    self._changed.notify_all()
                return
            with self._changed:
                for key in batch:
                    self._keys[key] -= 1
                    if not self._keys[key]:
                        del self._keys[key]
                self._changed.notify_all()

    def _next_batch(self) -> dict[Key, dict[str, Any]]:
        """The next operations, at most one for each key, so that their order in the batch does not matter."""
        batch: dict[Key, dict[str, Any]] = {}
        while self._unsaved and len(batch) < _BATCH and self._unsaved[0][0] not in batch:
            key, update = self._unsaved.popleft()
            batch[key] = update
        return batch

    def _save(self, batch: Mapping[Key, dict[str, Any]]) -> None:
        """Write a batch and renew the lease if it is time; after a lost connection, try again while the lease lasts."""
        from pymongo.errors import ConnectionFailure

        while True:
            try:
                with mongodb_errors(self.location, passing=(ConnectionFailure,)):
                    if time.monotonic() - self._renewed > self._lease_s / 3:
                        self._renew()
                    if batch:
                        self._write_batch(batch)
                return
            except ConnectionFailure as error:
                if time.monotonic() - self._renewed > self._lease_s:
                    raise InputError(
                        f"{self.location}: the connection was lost for {self._lease_s:.0f} s, and {len(self._keys):,} "
                        "answers are not saved; run the same command again when the server is back"
                    ) from error
                logger.warning(f"{self.location}: the connection was lost; trying again")
                time.sleep(_RETRY_S)

    def _write_batch(self, batch: Mapping[Key, dict[str, Any]]) -> None:
        from pymongo import UpdateOne
        from pymongo.errors import BulkWriteError

        operations = [
            UpdateOne({**key._asdict(), "last": {"$lt": update["$set"]["last"]}}, update, upsert=True)
            for key, update in batch.items()
        ]
        try:
            self._answers.bulk_write(operations, ordered=False)
        except BulkWriteError as error:
            # A document with the key and no lower number: the operation was done before the connection was lost, or
            # the next owner of the lease has written to it.
            if any(problem["code"] != _DUPLICATE_KEY for problem in error.details["writeErrors"]):
                raise

    # --- The lease ---------------------------------------------------------------------------------------------------

    def _take_lease(self) -> int:
        """Take the lease and return its number.

        Raises:
            InputError: its owner renews it.
        """
        from pymongo import ReturnDocument
        from pymongo.errors import DuplicateKeyError

        name = {"_id": self._answers.name}
        owner = {"host": socket.gethostname(), "process": os.getpid()}
        seen = None
        while True:
            self._renewed = time.monotonic()
            now = self._server_time()
            try:
                lease = self._leases.find_one_and_update(
                    {**name, "until": {"$lt": now}},
                    {"$set": {**owner, "until": now + timedelta(seconds=self._lease_s)}, "$inc": {"fence": 1}},
                    upsert=True,
                    return_document=ReturnDocument.AFTER,
                )
                return int((lease or {})["fence"])
            except DuplicateKeyError:  # it is held, so the search did not find it and inserted a second one
                held = self._leases.find_one(name) or {}
            state = (held.get("fence"), held.get("until"))
            if seen not in (None, state):
                raise InputError(
                    f"{self.location} is in use by another run (process {held.get('process')} on {held.get('host')}); "
                    "wait for it, or use another ledger"
                )
            if seen is None:
                logger.info(f"{self.location} was in use by another run; waiting until it is sure that it has ended")
            seen = state
            time.sleep(self._lease_s / 10)

    def _server_time(self) -> datetime:
        time_: datetime = self._answers.database.command("hello")["localTime"]
        return time_

    @property
    def _own_lease(self) -> dict[str, Any]:
        return {"_id": self._answers.name, "fence": self._fence}

    def _renew(self) -> None:
        now = time.monotonic()
        until = self._server_time() + timedelta(seconds=self._lease_s)
        if not self._leases.update_one(self._own_lease, {"$set": {"until": until}}).matched_count:
            raise InputError(
                f"{self.location}: another run has taken this ledger, because this one did not renew its lease for "
                f"{self._lease_s:.0f} s; wait for the other run, then run the same command again"
            )
        self._renewed = now
