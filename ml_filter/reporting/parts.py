"""Summaries of single shards, kept beside a report, so that the next one reads only the shards that are new."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from pydantic import BaseModel

from ml_filter.documents.manifest import Shard, digest_of
from ml_filter.location import Location

PARTS_NAME = ".report.jsonl"
_KEY_LENGTH = 64
_MAX_BYTES = 2**18
"""A larger summary, of a column with very many values, is not kept: it is not much smaller than its shard."""
Part = TypeVar("Part", bound=BaseModel)


class KeptParts:
    """The summaries of an earlier report, and a new file for those of this one. Memory holds only where each begins.

    Args:
        view: a digest of all that a summary depends on beside its shard.
    """

    def __init__(self, location: Location, view: str) -> None:
        self._location, self._view = location, view

    def __enter__(self) -> KeptParts:
        self._scratch = tempfile.TemporaryDirectory(prefix="ml_filter-report-")
        scratch = Path(self._scratch.name)
        self._old, self._new = (scratch / "old").open("w+b"), (scratch / "new").open("wb")
        if self._location.exists():
            with self._location.open() as file:
                shutil.copyfileobj(file, self._old)
        self._old.seek(0)
        self._places: dict[bytes, int] = {}
        place = 0
        for line in self._old:
            self._places[line[:_KEY_LENGTH]] = place
            place += len(line)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._old.close()
        self._new.close()
        self._scratch.cleanup()

    def find(self, shard: Shard, part: type[Part]) -> Part | None:
        """The summary of a shard that an earlier report made."""
        place = self._places.get(self._key(shard, part))
        if place is None:
            return None
        self._old.seek(place)
        line = self._old.readline()
        self._new.write(line)
        return part.model_validate_json(line[_KEY_LENGTH:])

    def keep(self, shard: Shard, part: Part) -> Part:
        """Keep a new summary of a shard; returns it."""
        line = self._key(shard, type(part)) + part.model_dump_json().encode() + b"\n"
        if len(line) <= _MAX_BYTES:
            self._new.write(line)
        return part

    def save(self) -> None:
        """Replace the file of the earlier report."""
        self._new.close()
        self._location.move_here(Path(self._new.name))

    def _key(self, shard: Shard, part: type[BaseModel]) -> bytes:
        return digest_of([self._view, part.__name__, shard.digest]).encode()
