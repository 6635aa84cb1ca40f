"""A cache of embeddings on disk: each text is put through a frozen encoder once, whatever heads are fitted on it.

One directory for each encoder, depth, length and number type, named by a digest of all these and of the encoder's
weights. `vectors` holds rows of float32, `keys` the digest of each row's text; `chunks` gains a line when the rows of
a chunk are on disk, and what stands behind its last whole line does not count. So a run that was killed goes on with
the next chunk, and its batches, and with them the last bit of every number, are those of an undisturbed run.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock, Timeout
from loguru import logger

if TYPE_CHECKING:
    from types import TracebackType

    from numpy.typing import NDArray

_KEY_BYTES = 32
_BLOCK_ROWS = 4096


class EmbeddingStore:
    """Embeddings [rows, width] by text.

    Args:
        root: directory of all stores.
        identity: what the embeddings depend on besides the text.
        width: numbers an embedding has.
        embed: texts to embeddings [texts, width], called for texts that are not in the store.

    Several runs may use a store at the same time: each holds the lock for one call's texts, embedding among them, so
    that no text is embedded by two.
    """

    def __init__(
        self,
        root: str | Path,
        identity: dict[str, Any],
        width: int,
        embed: Callable[[Sequence[str]], NDArray[np.float32]],
    ) -> None:
        name = hashlib.sha256(json.dumps({**identity, "width": width}, sort_keys=True).encode()).hexdigest()
        self.directory = Path(root).expanduser() / name[:32]
        self.width, self._embed = width, embed
        self.directory.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.directory / ".lock")
        self._waited = False
        self._rows: dict[bytes, int] = {}
        self.embedded = 0
        """Texts that were put through the encoder, and not found."""

    def __enter__(self) -> EmbeddingStore:
        self._chunks, self._keys = self._path("chunks").open("a+b"), self._path("keys").open("a+b")
        self._vectors = self._path("vectors").open("ab")
        with self._alone():
            return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in (self._vectors, self._keys, self._chunks):
            file.close()

    def rows_of(self, texts: Sequence[str]) -> list[int]:
        """The row of each text; those that are new are embedded, in one call, and are on disk on return."""
        keys = [hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest() for text in texts]
        if any(key not in self._rows for key in keys):
            with self._alone():
                self._add({key: text for key, text in zip(keys, texts, strict=True) if key not in self._rows})
        return [self._rows[key] for key in keys]

    def _add(self, new: dict[bytes, str]) -> None:
        if new:
            vectors = self._embed(list(new.values()))
            self._vectors.write(np.ascontiguousarray(vectors, dtype=np.float32).tobytes())
            self._keys.write(b"".join(new))
            for file in (self._vectors, self._keys):
                file.flush()
                os.fsync(file.fileno())
            for key in new:
                self._rows[key] = len(self._rows)
            self._chunks.write(f"{len(self._rows)}\n".encode())
            self._chunks.flush()
            self.embedded += len(new)

    def vectors(self) -> NDArray[np.float32]:
        """All embeddings [rows, width], mapped from disk."""
        if not self._rows:
            return np.empty((0, self.width), np.float32)
        return np.memmap(self._path("vectors"), np.float32, "r", shape=(len(self._rows), self.width))

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """The lock, with all that other runs have added taken in."""
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            if not self._waited:
                logger.info(f"Another run adds embeddings to {self.directory}: taking turns with it, chunk by chunk")
            self._waited = True
            self._lock.acquire()
        try:
            self._catch_up()
            yield
        finally:
            self._lock.release()

    def _catch_up(self) -> None:
        """Take in new rows, and cut off what a killed run left behind its last finished chunk."""
        self._chunks.seek(0)
        whole = [line for line in self._chunks.read().splitlines(keepends=True) if line.endswith(b"\n")]
        rows = int(whole[-1]) if whole else 0
        self._chunks.truncate(sum(map(len, whole)))
        self._keys.truncate(rows * _KEY_BYTES)
        self._vectors.truncate(rows * self.width * 4)
        known = len(self._rows)
        self._keys.seek(known * _KEY_BYTES)
        for row in range(known, rows):
            self._rows[self._keys.read(_KEY_BYTES)] = row

    def _path(self, name: str) -> Path:
        return self.directory / name


@dataclass(frozen=True)
class Embeddings:
    """Some rows and columns of a store, in an order of their own; blocks are read when they are asked for."""

    vectors: NDArray[np.float32]
    rows: NDArray[np.int64]
    columns: NDArray[np.int64] | None = None
    """None: all."""

    @property
    def shape(self) -> tuple[int, int]:
        """Documents and width."""
        return len(self.rows), self.vectors.shape[1] if self.columns is None else len(self.columns)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, places: Any) -> NDArray[np.float32]:
        """The embeddings at `places`, a slice or an array, in memory."""
        block = np.asarray(self.vectors[self.rows[places]])
        return block if self.columns is None else np.ascontiguousarray(block[:, self.columns])

    def take(self, places: NDArray[Any]) -> Embeddings:
        """The same rows fewer: `places` is a mask or an array of indices; nothing is read."""
        return Embeddings(self.vectors, self.rows[places], self.columns)

    def blocks(self) -> list[slice]:
        """Slices that cover all rows, each small enough for memory."""
        return [slice(start, min(start + _BLOCK_ROWS, len(self))) for start in range(0, len(self), _BLOCK_ROWS)]
