"""A ledger on object storage: an SQLite file in local scratch, and segments of its changes at a URL.

`GENERATION-NUMBER.jsonl.zst` holds changes in the order in which they were made; a generation is one process
(documents/lease.py). A segment is never changed. Opening the ledger replays all segments in the order of their names.
Uploading the SQLite file instead would cost bytes that grow with the square of the answers.
"""

from __future__ import annotations

import re
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import PurePosixPath
from types import FrameType
from typing import Any, NamedTuple

import orjson
import zstandard
from loguru import logger
from typing_extensions import override

from ml_filter.annotation.config import AskConfig
from ml_filter.annotation.ledger.base import Key, Ledger, Paid
from ml_filter.annotation.ledger.sqlite import SqliteLedger
from ml_filter.documents.lease import Lease, create_file
from ml_filter.documents.lock import temporary_directory
from ml_filter.errors import InputError, MlFilterError
from ml_filter.location import Location, reaching

_NAME = re.compile(r"(\d{6,})-(\d{6,})\.jsonl\.zst")
_REPLAYED_AT_ONCE = 8 * 2**20
"""Compressed bytes of segments that are in memory while they are replayed."""
_LONGEST_PAUSE_S = 10.0
_CLOSING_S = 20.0
"""How long closing tries to save the last answers; Kubernetes kills a pod 30 s after it asked it to end."""


class _Segment(NamedTuple):
    generation: int
    number: int
    path: str
    size: int

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name


class SegmentLedger(Ledger):
    """A ledger at a URL. A thread uploads what was recorded; at most `ledger_answers` are not saved yet.

    Raises:
        InputError: another process holds the ledger, a segment is damaged, or the URL cannot be reached.
    """

    def __init__(self, location: Location, config: AskConfig) -> None:
        self.location, self._config = location, config
        self._applied: set[str] = set()
        self._changed = threading.Condition()
        self._pending: list[bytes] = []
        self._pending_since = 0.0
        self._saving = self._uploaded = 0
        self._flushing = self._closing = False
        self._error: MlFilterError | None = None
        self._error_is_told = False
        with ExitStack() as stack:
            stack.enter_context(_terminated_as_interrupted())
            scratch, lock = temporary_directory()
            stack.callback(lock.release)
            stack.callback(shutil.rmtree, scratch, ignore_errors=True)
            self._local = stack.enter_context(SqliteLedger(scratch / "ledger.sqlite", synchronous="OFF"))
            used = max((segment.generation for segment in self._segments()), default=0)
            self._lease = Lease(location / "lease", f"the ledger {location}", above=used)
            stack.callback(self._lease.release)
            self.replay()
            self._thread = threading.Thread(target=self._save_until_closed, name="ledger", daemon=True)
            self._thread.start()
            self._resources = stack.pop_all()

    # --- Answers -----------------------------------------------------------------------------------------------------

    @override
    def record(self, key: Key, window: int, row: Mapping[str, Any], assumed: tuple[int, int] = (0, 0)) -> None:
        self._local.record(key, window, row, assumed)
        self._add({"key": [*key], "window": window, "row": row, "assumed": assumed})

    @override
    def forget(self, key: Key) -> None:
        self._local.forget(key)
        self._add({"key": [*key], "forget": True})

    @override
    def statuses(self, key: Key) -> dict[int, str]:
        return self._local.statuses(key)

    @override
    def answers(self, key: Key) -> tuple[list[dict[str, Any]], Paid]:
        return self._local.answers(key)

    @override
    def tokens_used(self, questions: Sequence[str]) -> tuple[int, int]:
        return self._local.tokens_used(questions)

    @override
    def is_worthless(self) -> bool:
        return self._local.is_worthless()

    # --- Replay ------------------------------------------------------------------------------------------------------

    def replay(self) -> None:
        """Apply all segments that were not applied yet.

        Raises:
            InputError: a segment is damaged.
        """
        segments, expected = [], (0, 0)
        for segment in self._segments():
            if segment.generation != expected[0]:
                expected = (segment.generation, 0)
            if segment.number != expected[1]:
                logger.warning(
                    f"{self.location}: {segment.number - expected[1]:,} segments before {segment.name} are missing; "
                    "the answers in them are asked again"
                )
            expected = (segment.generation, segment.number + 1)
            if segment.name not in self._applied:
                segments.append(segment)
        with ThreadPoolExecutor(8, thread_name_prefix="ledger-replay") as pool:
            while segments:
                batch, size = [segments.pop(0)], 0
                while segments and (size := size + segments[0].size) <= _REPLAYED_AT_ONCE:
                    batch.append(segments.pop(0))
                for segment, content in zip(batch, pool.map(self._read, batch), strict=True):
                    self._apply(segment, content)

    def _segments(self) -> list[_Segment]:
        fs, root = self.location.fs, self.location.path
        with reaching(self.location):
            fs.invalidate_cache(root)
            try:
                listed = fs.ls(root, detail=True)
            except FileNotFoundError:
                listed = []
        names = [(_NAME.fullmatch(PurePosixPath(entry["name"]).name), entry) for entry in listed]
        if listed and not any(match for match, _ in names) and not self._is_ledger(listed):
            raise InputError(f"{self.location} is not a ledger of annotations: it holds other files; use another URL")
        return sorted(
            _Segment(int(match[1]), int(match[2]), entry["name"], entry.get("size") or 0)
            for match, entry in names
            if match
        )

    @staticmethod
    def _is_ledger(listed: Sequence[Mapping[str, Any]]) -> bool:
        """Whether a directory without segments holds nothing but a lease."""
        return {PurePosixPath(entry["name"].rstrip("/")).name for entry in listed} <= {"lease", ""}

    def _read(self, segment: _Segment) -> bytes:
        with reaching(self.location):
            content: bytes = self.location.fs.cat_file(segment.path)
        return content

    def _apply(self, segment: _Segment, content: bytes) -> None:
        try:
            lines = zstandard.ZstdDecompressor().decompress(content, allow_extra_data=False).splitlines()
            with self._local.together():
                for line in lines:
                    change = orjson.loads(line)
                    key = Key(*change["key"])
                    if "forget" in change:
                        self._local.forget(key)
                    else:
                        self._local.record(key, change["window"], change["row"], tuple(change["assumed"]))
        except (zstandard.ZstdError, orjson.JSONDecodeError, LookupError, TypeError) as error:
            raise InputError(
                f"{segment.path}, a segment of the ledger {self.location}, is damaged ({error}). Restore it from an "
                "earlier version of the object, or delete it: the answers in it are then asked again"
            ) from error
        self._applied.add(segment.name)

    # --- Saving ------------------------------------------------------------------------------------------------------

    @override
    def has_room(self) -> bool:
        self._check()
        return self._unsaved < self._config.ledger_answers

    @override
    def wait_for_room(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._error or self._unsaved < self._config.ledger_answers)
        self._check()

    @override
    def flush(self) -> None:
        with self._changed:
            self._flushing = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._error or not self._unsaved)
            self._flushing = False
        self._check()

    @override
    def close(self) -> None:
        with self._resources:
            with self._changed:
                self._closing = True
                self._changed.notify_all()
            self._thread.join()
            if self._unsaved and self._error_is_told:
                logger.error(f"{self._unsaved:,} answers could not be saved to the ledger {self.location}")
            elif self._unsaved:
                self._check()

    @property
    def _unsaved(self) -> int:
        return len(self._pending) + self._saving

    def _check(self) -> None:
        self._lease.check()
        if self._error is not None:
            self._error_is_told = True
            raise self._error

    def _add(self, change: Mapping[str, Any]) -> None:
        line = orjson.dumps(change)
        with self._changed:
            if not self._pending:
                self._pending_since = time.monotonic()
            self._pending.append(line)
            self._changed.notify_all()

    def _save_until_closed(self) -> None:
        while True:
            with self._changed:
                while not self._is_due():
                    if self._closing and not self._pending:
                        return
                    age = time.monotonic() - self._pending_since
                    self._changed.wait(self._config.ledger_seconds - age if self._pending else None)
                lines, self._pending = self._pending, []
                self._saving = len(lines)
            is_saved = self._upload(lines)
            with self._changed:
                self._saving = 0
                if is_saved:
                    self._uploaded += 1
                else:
                    self._pending = lines + self._pending
                self._changed.notify_all()
                if not is_saved:
                    return

    def _is_due(self) -> bool:
        if not self._pending:
            return False
        is_many = 2 * len(self._pending) >= self._config.ledger_answers  # so that asking goes on during an upload
        is_old = time.monotonic() - self._pending_since >= self._config.ledger_seconds
        return is_many or is_old or self._flushing or self._closing

    def _upload(self, lines: Sequence[bytes]) -> bool:
        """Save lines as the next segment; False if that has failed for too long."""
        content = zstandard.ZstdCompressor(write_checksum=True).compress(b"\n".join(lines) + b"\n")
        file = self.location / f"{self._lease.generation:06d}-{self._uploaded:06d}.jsonl.zst"
        began, pause = time.monotonic(), 0.25
        while True:
            try:
                if create_file(file, content):
                    self._applied.add(file.name)
                    return True
                error = InputError(f"{file} was written by another process")
                pause = self._config.max_outage_s
            except InputError as failure:
                error = failure
            limit = min(_CLOSING_S, self._config.max_outage_s) if self._closing else self._config.max_outage_s
            if time.monotonic() - began + pause > limit:
                self._error = InputError(
                    f"answers cannot be saved to the ledger, so no more are asked for: {error}. {len(lines):,} or more "
                    f"answers are lost, the others are kept. Run the same command again when {self.location} can be "
                    "written"
                )
                return False
            logger.warning(f"Answers could not be saved, and are tried again in {pause:g} s: {error}")
            with self._changed:
                was_closing = self._closing
                self._changed.wait_for(lambda: self._closing != was_closing, pause)  # noqa: B023
            pause = min(2 * pause, _LONGEST_PAUSE_S)


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Let SIGTERM, with which Kubernetes and spot instances end a process, save answers as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may change handlers
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        handler = signal.getsignal(signal.SIGINT)  # asyncio's while it runs: it cancels tasks between two steps
        if not callable(handler):
            raise KeyboardInterrupt
        handler(number, frame)

    earlier = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, earlier)
