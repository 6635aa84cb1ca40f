"""The preview of a manifest: counts, shards, and the first rows."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ml_filter.documents.manifest import Manifest
from ml_filter.rendering.html import render

_ROWS = 5
_CELL = 160
_SHARDS = 20


def manifest_preview(manifest: Manifest) -> str:
    """HTML with counts, the first shards and the first rows of the first shard, long values cut."""
    rows: list[dict[str, Any]] = []
    if manifest.shards:
        try:
            batch = next(pq.ParquetFile(manifest.shard_paths()[0]).iter_batches(batch_size=_ROWS), None)
            rows = batch.to_pylist() if batch is not None else []
        except (OSError, pa.ArrowException):  # the shards may lie where this machine cannot read
            rows = []
    cut = [
        {name: text if len(text := str(value)) <= _CELL else text[:_CELL] + "…" for name, value in row.items()}
        for row in rows
    ]
    return render("documents/templates/manifest.html", manifest=manifest, rows=cut, shown=manifest.shards[:_SHARDS])
