"""The preview of a manifest: counts, shards, and the first rows."""

from __future__ import annotations

from typing import Any

from ml_filter.documents.manifest import Manifest
from ml_filter.documents.readers import read_tables
from ml_filter.errors import InputError
from ml_filter.rendering.html import render

_ROWS = 5
_CELL = 160
_SHARDS = 20


def manifest_preview(manifest: Manifest) -> str:
    """HTML with counts, the first shards and the first rows of the first shard; long values are cut."""
    rows: list[dict[str, Any]] = []
    if manifest.shards:
        try:
            table = next(read_tables(manifest.shard_paths()[0]), None)
            rows = table.slice(0, _ROWS).to_pylist() if table is not None else []
        except InputError:  # this machine may not have access to the shards
            rows = []
    cut = [
        {name: text if len(text := str(value)) <= _CELL else text[:_CELL] + "…" for name, value in row.items()}
        for row in rows
    ]
    return render("documents/templates/manifest.html", manifest=manifest, rows=cut, shown=manifest.shards[:_SHARDS])
