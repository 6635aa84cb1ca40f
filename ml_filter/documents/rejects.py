"""Input that could not be read: counted by reason and listed with its location, never silently dropped."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO

from ml_filter.errors import InputError

DAMAGE = ("truncated", "unreadable")
"""Reasons that stand for an unknown number of documents: part of a file, or all of it, is missing."""
_MAX_DETAIL = 500


class RejectsLog:
    """Appends one JSON line for each reject: `source`, `place` (the location in it), `reason`, `detail`.

    Reasons: `truncated`, `unreadable`, `invalid_utf8`, `invalid_json`, `invalid_csv`, `missing_text`, `empty_text`,
    `text_too_long`, `http_status`, `no_main_text`, `extraction_timeout`, `extraction_failed`, `encrypted`,
    `duplicate_id`; in tuning `not_a_conversation`, `too_long`; in multiple choice `not_a_question`.

    Args:
        path: a local file; None: rejects are only counted.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.counts: Counter[str] = Counter()
        self.renamed_ids = 0
        """Documents that are not rejected, but got a new id (`unique.py`)."""
        self.damage: str | None = None
        """The first reject whose reason is damage: reason, location and detail."""
        self.first: str | None = None
        """The first reject: source, location and detail."""
        self._file: IO[str] | None = None

    def __enter__(self) -> RejectsLog:
        if self.path is not None:
            self._file = self.path.open("w", encoding="utf-8")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, source: str, location: str, reason: str, detail: str = "") -> None:
        """Record what was left out."""
        self.counts[reason] += 1
        detail = detail[:_MAX_DETAIL]
        self.first = self.first or f"{source}, {location}" + (f": {detail}" if detail else "")
        if reason in DAMAGE and self.damage is None:
            self.damage = f"{reason}, {location}: {detail}"
        if self._file is not None:
            row = {"source": source, "place": location, "reason": reason, "detail": detail}
            self._file.write(json.dumps(row, ensure_ascii=False) + "\n")

    @property
    def total(self) -> int:
        """Number of rejects so far."""
        return self.counts.total()


def nothing_read(
    paths: Sequence[str], counts: Mapping[str, int], option: str = "--text-column", first: str | None = None
) -> InputError:
    """The error for sources without a readable document.

    Args:
        counts: of a rejects log or of shard results.
        option: names the column that holds the text.
        first: where the first reject is, and why.
    """
    reasons = {name.removeprefix("rejected_"): n for name, n in counts.items() if n and name != "rejected"}
    hint = (
        f"; name the column that holds the text with {option}" if reasons.keys() & {"missing_text", "no_text"} else ""
    )
    hint += f" (first: {first})" if first else ""
    return InputError(f"no document could be read from {', '.join(paths)}: {describe_counts(reasons)}{hint}")


def describe_counts(counts: Mapping[str, int]) -> str:
    """The reasons with a count other than 0, such as `missing_text 2, empty_text 1`."""
    return ", ".join(f"{reason} {n:,}" for reason, n in counts.items() if n) or "the source is empty"
