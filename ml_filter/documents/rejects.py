"""Input that could not be read: counted by reason and listed with its place, never silently dropped."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import IO

DAMAGE = ("truncated", "unreadable")
"""Reasons that stand for documents nobody has counted: part of a source, or all of it, is missing."""


class RejectsLog:
    """Appends one JSON line for each rejection: `source`, `place`, `reason`, `detail`.

    Reasons: `truncated`, `unreadable`, `invalid_utf8`, `invalid_json`, `invalid_csv`, `missing_text`, `empty_text`,
    `text_too_long`, `no_main_text`, `duplicate_id`.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.counts: Counter[str] = Counter()
        self.damage: str | None = None
        """The first reject that is damage: reason, place and detail."""
        self._file: IO[str] | None = None

    def __enter__(self) -> RejectsLog:
        if self.path is not None:
            self._file = self.path.open("w", encoding="utf-8")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, source: str, place: str, reason: str, detail: str = "") -> None:
        """Record that what stands at `place` of `source` was left out."""
        self.counts[reason] += 1
        if reason in DAMAGE and self.damage is None:
            self.damage = f"{reason}, {place}: {detail[:500]}"
        if self._file is not None:
            row = {"source": source, "place": place, "reason": reason, "detail": detail[:500]}
            self._file.write(json.dumps(row, ensure_ascii=False) + "\n")

    @property
    def total(self) -> int:
        """Rejections so far."""
        return self.counts.total()
