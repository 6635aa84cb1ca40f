"""A lease: the right to write to a place on object storage, where nothing can be locked.

Each holder has a generation: a file that object storage creates only if it does not exist. The holder
keeps changing its file. Whoever finds a file that did not change for `ttl_s`, measured by its own clock, creates the
next generation; no two machines compare clocks. A holder that was only slow finds the newer generation and stops.

What holders write must be named by their generation, so that it is never overwritten by that of another.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import NamedTuple

from filelock import FileLock, Timeout
from loguru import logger
from pydantic import BaseModel, ValidationError

from ml_filter.config import Settings
from ml_filter.documents.lock import LOCK_NAME
from ml_filter.errors import InputError
from ml_filter.location import Location, reaching

_BEATS_PER_TTL = 4


class _Holder(BaseModel):
    """The content of a generation's file. `beat` changes it, and `token` tells processes apart."""

    token: str
    host: str
    pid: int
    since: str
    beat: int = 0
    is_released: bool = False


class _Latest(NamedTuple):
    generation: int
    content: bytes | None

    @property
    def holder(self) -> _Holder | None:
        """None: nobody ever held the lease, or the file cannot be read."""
        try:
            return _Holder.model_validate_json(self.content or b"")
        except ValidationError:
            return None


class Lease:
    """A lease that this process holds until `release`.

    Args:
        directory: for the files of the generations.
        what: what the lease is for, as messages name it.
        above: this generation and those below it were used before.
        ttl_s: how long a holder may be silent (default: as in the settings).

    Raises:
        InputError: another process holds the lease and is alive, or the location cannot be reached.
    """

    def __init__(self, directory: Location, what: str, *, above: int = 0, ttl_s: float | None = None) -> None:
        self._directory, self._what = directory, what
        self._ttl_s = Settings().lease_s if ttl_s is None else ttl_s
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self._holder = _Holder(token=uuid.uuid4().hex, host=socket.gethostname(), pid=os.getpid(), since=now)
        self._is_lost = False
        self._over = threading.Event()
        directory.make_directory()
        self.generation = self._acquire(above)
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise InputError if another process has taken over."""
        if self._is_lost:
            raise InputError(
                f"{self._what} was taken over by another run, because this one could not renew its lease for "
                f"{self._ttl_s:g} s; answers of both are kept. Wait for the other run, then run again"
            )

    def confirm(self) -> None:
        """As `check`, but look first: this process may just have woken up. It takes a request."""
        self._is_lost = self._is_lost or self._latest().generation > self.generation
        self.check()

    def release(self) -> None:
        """Let the next process in at once."""
        self._over.set()
        self._thread.join()
        if not self._is_lost:
            self._holder.is_released = True
            try:
                self._write()
            except InputError as error:  # the next process waits until the lease runs out
                logger.warning(f"The lease of {self._what} could not be released: {error}")

    def _acquire(self, above: int) -> int:
        """Create the next generation as soon as nobody holds the latest one."""
        watched: _Latest | None = None
        began = time.monotonic()
        while True:
            latest = self._latest()
            holder = latest.holder
            is_free = latest.content is None or (holder is not None and holder.is_released)
            if not is_free and watched != latest:
                who = f"process {holder.pid} on {holder.host} since {holder.since}" if holder else "another process"
                if watched is not None:  # it has changed, so its holder is alive
                    raise InputError(f"{self._what} is in use by another run ({who}); wait for it, or use another")
                watched, began = latest, time.monotonic()
                logger.warning(f"{self._what} is held by {who}. If that was killed, this takes {self._ttl_s:g} s")
            if is_free or time.monotonic() - began >= self._ttl_s:
                generation = max(latest.generation, above) + 1
                if create_file(self._file(generation), self._content()):
                    return generation
            else:
                time.sleep(self._ttl_s / (2 * _BEATS_PER_TTL))

    def _keep(self) -> None:
        """Renew the lease until it is released or lost."""
        while not self._over.wait(self._ttl_s / _BEATS_PER_TTL):
            try:
                if self._latest().generation > self.generation:
                    self._is_lost = True
                    return
                self._holder.beat += 1
                self._write()
            except InputError as error:
                logger.warning(f"The lease of {self._what} could not be renewed, and is tried again: {error}")

    def _latest(self) -> _Latest:
        fs, root = self._directory.fs, self._directory.path
        with reaching(self._directory):
            fs.invalidate_cache(root)
            try:
                names = [PurePosixPath(path).name for path in fs.ls(root, detail=False)]
            except FileNotFoundError:
                names = []
        generation = max((int(stem) for name in names if (stem := name.partition(".")[0]).isdigit()), default=0)
        return _Latest(generation, self._file(generation).find_bytes() if generation else None)

    def _file(self, generation: int) -> Location:
        return self._directory / f"{generation:06d}.json"

    def _content(self) -> bytes:
        return self._holder.model_dump_json().encode()

    def _write(self) -> None:
        self._file(self.generation).write_bytes(self._content())


@contextmanager
def alone_in(directory: Location) -> Iterator[Callable[[], None]]:
    """Keep other processes out of a directory: by a lock or, at a URL, by a lease.

    Yields:
        What raises InputError if another process is in it nevertheless, because this one slept for too long.

    Raises:
        InputError: another process is in it.
    """
    if not directory.is_local:
        lease = Lease(directory / ".lease", str(directory))
        try:
            yield lease.confirm
        finally:
            lease.release()
        return
    try:
        lock = FileLock(directory.local / LOCK_NAME).acquire(timeout=0)
    except Timeout:
        raise InputError(f"{directory} is in use by another process; wait for it") from None
    with lock:
        yield lambda: None


def create_file(file: Location, content: bytes) -> bool:
    """Write a file if it does not exist. Returns whether the file now has this content.

    Raises:
        InputError: the location cannot be reached.
    """
    with reaching(file):
        try:
            file.fs.pipe_file(file.path, content, mode="create")
        except OSError:  # it exists, drivers differ in how they say so; or it arrived, and only the reply was lost
            if (existing := file.find_bytes()) is None:
                raise
            return existing == content
    return file.find_bytes() == content  # a driver may not know `create`; then the last of two at a time wins
