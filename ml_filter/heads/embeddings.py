"""A cache of embeddings on disk: a text is embedded once, however many heads are fitted on it.

There is one directory for each combination of encoder, layers, length and number type, named by the digest of these.
`vectors` has rows of float32 and `keys` the digest of each row's text. `chunks` gets a line with the number of rows
once a chunk is on disk; rows beyond its last complete line are ignored and cut off. A run that was killed therefore
continues with the next chunk, and its batches, and so every bit of its numbers, equal those of an undisturbed run.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from loguru import logger
from numpy.typing import NDArray

_KEY_BYTES = 32
_BLOCK_ROWS = 4096


class EmbeddingStore:
    """Embeddings [rows, width] by text.

    Several runs may use a store at the same time: `rows_of` holds a lock while it embeds, so that no text is embedded
    twice.

    Args:
        root: directory of all stores.
        identity: everything the embeddings depend on besides the text.
        width: length of an embedding.
        embed: texts to embeddings [texts, width]; called for texts that are not in the store. `embedded` counts them.
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
        self._has_waited = False
        self._rows: dict[bytes, int] = {}
        self.embedded = 0

    def __enter__(self) -> EmbeddingStore:
        self._chunks, self._keys = (self.directory / "chunks").open("a+b"), (self.directory / "keys").open("a+b")
        self._vectors = (self.directory / "vectors").open("ab")
        with self._exclusive():
            return self

    def __exit__(self, *error: object) -> None:
        for file in (self._vectors, self._keys, self._chunks):
            file.close()

    def rows_of(self, texts: Sequence[str]) -> list[int]:
        """The row of each text. New texts are embedded in one call and are on disk on return."""
        keys = [hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest() for text in texts]
        if any(key not in self._rows for key in keys):
            with self._exclusive():
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
        return np.memmap(self.directory / "vectors", np.float32, "r", shape=(len(self._rows), self.width))

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Hold the lock, with the rows of other runs read."""
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            if not self._has_waited:
                logger.info(f"Another run is adding embeddings to {self.directory}; taking turns, chunk by chunk")
            self._has_waited = True
            self._lock.acquire()
        try:
            self._read_new_rows()
            yield
        finally:
            self._lock.release()

    def _read_new_rows(self) -> None:
        """Read the rows of other runs, and cut off what a killed run wrote after its last finished chunk."""
        self._chunks.seek(0)
        complete = [line for line in self._chunks.read().splitlines(keepends=True) if line.endswith(b"\n")]
        rows = int(complete[-1]) if complete else 0
        self._chunks.truncate(sum(map(len, complete)))
        self._keys.truncate(rows * _KEY_BYTES)
        self._vectors.truncate(rows * self.width * 4)
        first_new = len(self._rows)
        self._keys.seek(first_new * _KEY_BYTES)
        for row in range(first_new, rows):
            self._rows[self._keys.read(_KEY_BYTES)] = row


@dataclass(frozen=True)
class Embeddings:
    """Some rows and columns of a store, in any order; they are read from disk when indexed.

    `vectors` are those of the store; `columns` None is all.
    """

    vectors: NDArray[np.float32]
    rows: NDArray[np.int64]
    columns: NDArray[np.int64] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return len(self.rows), self.vectors.shape[1] if self.columns is None else len(self.columns)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, indices: Any) -> NDArray[np.float32]:
        """The embeddings at `indices` (a slice or an array), in memory."""
        block = np.asarray(self.vectors[self.rows[indices]])
        return block if self.columns is None else np.ascontiguousarray(block[:, self.columns])

    def take(self, indices: NDArray[Any]) -> Embeddings:
        """The embeddings at `indices` (a mask or an array), without reading them."""
        return Embeddings(self.vectors, self.rows[indices], self.columns)

    def blocks(self) -> list[slice]:
        """Slices that together cover all rows, each small enough for memory."""
        return [slice(start, min(start + _BLOCK_ROWS, len(self))) for start in range(0, len(self), _BLOCK_ROWS)]
