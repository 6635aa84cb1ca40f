"""Results of shards, and what a finished directory keeps of them so that a later run can use its shards again."""

from __future__ import annotations

import json
from collections.abc import Iterable

from pydantic import BaseModel

from ml_filter.documents.manifest import FailedShard, Shard


class ShardResult(BaseModel):
    """The result of one input shard: its output (None: it has no rows) and its counts.

    Nothing is kept of a shard that `failed`. `state` is that of the input (`sources.shard_state`) and of all else that
    the output depends on and that may change between two runs of a directory.
    """

    shard: Shard | None
    counts: dict[str, int]
    failed: FailedShard | None = None
    state: str | None = None
    seconds: float = 0.0
    """Time that its process needed."""
    first_reject: str | None = None
    """Its source, location and detail."""
    rejects_bytes: int = 0
    rejects_at: int | None = None
    """Where its rejects begin in a file that has those of all shards; None: they are in a separate file."""


def first_reject(results: Iterable[tuple[str, ShardResult]]) -> str | None:
    """The first reject of the first shard that has one."""
    return next((result.first_reject for _, result in results if result.first_reject), None)


def to_lines(results: Iterable[tuple[str, ShardResult]]) -> bytes:
    """A JSON line for each shard, with its name."""
    return "".join(json.dumps({"name": name, **result.model_dump()}) + "\n" for name, result in results).encode()


def from_lines(content: bytes | None) -> dict[str, ShardResult]:
    """The results that `to_lines` wrote, by the name of the shard; none without a file."""
    lines = map(json.loads, (content or b"").splitlines())
    return {line["name"]: ShardResult.model_validate(line) for line in lines}
