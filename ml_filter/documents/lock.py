"""Locks that keep two processes from writing to one place; the operating system releases those of a killed process."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from ml_filter.errors import InputError

LOCK_NAME = ".lock"
_BRIEF_WAIT_S = 60.0
"""For a lock that another writer holds only for a moment, while it begins or ends."""
_TEMPORARY_PREFIX = "ml_filter-output-"


class WriterLock:
    """The lock of one output directory.

    A single writer holds `.lock` from beginning to end. Each of several writers (parts) holds `PARTS/NAME.lock` instead
    and takes `.lock` only for a moment, so that they work at the same time but begin and end one after another.

    Args:
        root: the directory; None: it is at a URL, where nothing can be locked.
        path: the directory as the user wrote it, for messages.
        parts: the directory for the locks of parts, relative to `root`.
        part: the name of this part; None: a single writer.
    """

    def __init__(self, root: Path | None, path: str, parts: str, part: str | None) -> None:
        self._root, self._path, self._parts, self._part = root, path, parts, part
        self._held: FileLock | None = None

    def begin(self) -> None:
        """Take `.lock`.

        Raises:
            InputError: another process writes to the directory.
        """
        self._held = self._acquire(LOCK_NAME, _BRIEF_WAIT_S if self._part else 0)
        if self._root is not None and self._part is None:
            for path in self._root.glob(f"{self._parts}/*.lock"):
                if (lock := self._acquire(f"{self._parts}/{path.name}")) is not None:
                    lock.release()

    def share(self) -> None:
        """Let other parts begin: hold only the lock of this part."""
        if self._part is not None:
            common, self._held = self._held, self._acquire(f"{self._parts}/{self._part}.lock")
            if common is not None:
                common.release()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Keep other parts from beginning or ending; a single writer is alone anyway."""
        lock = self._acquire(LOCK_NAME, _BRIEF_WAIT_S) if self._part else None
        try:
            yield
        finally:
            if lock is not None:
                lock.release()

    def release(self) -> None:
        """Release what is held."""
        if self._held is not None:
            self._held.release()

    def _acquire(self, name: str, wait_s: float = 0) -> FileLock | None:
        if self._root is None:
            return None
        lock = FileLock(self._root / name)
        try:
            lock.acquire(timeout=wait_s)
        except Timeout:
            raise InputError(
                f"{self._path} is being written by another process; wait for it or choose another --output"
            ) from None
        return lock


def temporary_directory() -> tuple[Path, FileLock]:
    """A new directory, in use as long as its lock is held. Those of killed processes are deleted."""
    for path in Path(tempfile.gettempdir()).glob(f"{_TEMPORARY_PREFIX}*/{LOCK_NAME}"):
        lock = FileLock(path, thread_local=False)
        with suppress(Timeout, OSError), lock.acquire(timeout=0):  # nobody holds it: its process is gone
            shutil.rmtree(path.parent, ignore_errors=True)
    while True:
        directory = Path(tempfile.mkdtemp(prefix=_TEMPORARY_PREFIX))
        lock = FileLock(directory / LOCK_NAME, thread_local=False)
        lock.acquire()
        if (directory / LOCK_NAME).exists():  # else another process deleted it before it was locked
            return directory, lock
        lock.release()
