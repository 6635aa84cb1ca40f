"""Ledgers of the tests: how each implementation is opened, and an answer to record."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ml_filter.annotation.ledger import Key, Ledger
from ml_filter.documents.schema import ANNOTATION_SCHEMA

OpenLedger = Callable[[], Ledger]
"""Opens the same ledger each time."""
KEY = Key("d1", "text", "question", 0)


def row(status: str, tokens: int | None = 10, **changes: Any) -> dict[str, Any]:
    """The row of an annotation."""
    blank = dict.fromkeys(ANNOTATION_SCHEMA.names)
    return {**blank, "document_id": "d1", "status": status, "prompt_tokens": tokens, "windows": 1, **changes}
