"""What every process that takes part in scoring a corpus knows and does: one input shard to one output shard.

The command's own process, its workers, Ray's actors and the ranks of a cluster job all call `score_shard`. It can be
called for the same shard any number of times, by any of them, one after the other or at once: what is in place
afterwards is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from loguru import logger

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.manifest import Parent, digest_of
from ml_filter.documents.output import OutputDirectory, Resumption, ShardResult
from ml_filter.documents.readers import InputShard
from ml_filter.documents.rejects import DAMAGE
from ml_filter.documents.shards import DamagedShard, Transformed, map_shard
from ml_filter.documents.sources import shard_state
from ml_filter.documents.tables import concat_tables, rename_clashing_columns
from ml_filter.errors import InputError, MlFilterError
from ml_filter.heads.engine import Engine
from ml_filter.scoring.choice import Choice
from ml_filter.scoring.config import ScoreConfig

_CHUNK_ROWS = 4000
_CHUNK_BYTES = 64 * 2**20
_ONLY_HOW = frozenset(
    {"workers", "ray", "worker_cpus", "worker_gpus", "worker_attempts", "max_failed_shards", "max_failed_documents"}
)
"""Settings that scores do not depend on, so that a run may go on with others."""


@dataclass(frozen=True)
class ScoringJob:
    """What is scored, with what, and where it goes; all of it travels to workers."""

    model_directory: str
    source: SourceConfig
    config: ScoreConfig
    output: str
    shards: tuple[InputShard, ...]
    parents: tuple[Parent, ...]
    """Of the source, then the head's."""
    choice: Choice | None = None
    """What the settings leave open; None until it is chosen."""

    @property
    def engine_config(self) -> ScoreConfig:
        """The settings, with what was chosen."""
        return self.config if self.choice is None else self.choice.settle(self.config)

    def directory(self, part: str | None = None, *, is_helper: bool = False) -> OutputDirectory:
        """The output, to be entered; see OutputDirectory for `part` and `is_helper`."""
        settings = {
            "source": self.source.model_dump(mode="json"),
            "score": self.config.model_dump(mode="json", exclude=set(_ONLY_HOW)),
        }
        return OutputDirectory(
            self.output,
            "scored",
            settings,
            self.parents,
            part=part,
            is_helper=is_helper,
            resumption=Resumption(self._unchanging(), self._holds),
        )

    def _unchanging(self) -> str:
        """Digest of what must be the same for a run to go on: not the content of shards, which may be mended."""
        score = self.config.model_dump(mode="json", exclude={*_ONLY_HOW, "damaged_shards"})
        source = self.source.model_dump(mode="json")
        return digest_of([source, score, self.parents[-1].digest, [shard.uri for shard in self.shards]])

    def _holds(self, out: OutputDirectory) -> bool:
        """Whether each finished shard is that of the input as it is now, and may be there under these settings."""
        done = out.all_done(shard.name for shard in self.shards)
        for shard in self.shards:
            result = done.get(shard.name)
            if result is None or result.failed:
                continue
            is_damaged = any(f"rejected_{reason}" in result.counts for reason in DAMAGE)
            if result.state != shard_state(shard) or (is_damaged and self.config.damaged_shards == "fail"):
                return False
        return True


def score_shard(
    job: ScoringJob, shard: InputShard, engine: Engine, out: OutputDirectory, advance: Callable[[int], None]
) -> ShardResult:
    """Score one input shard to one output shard, or remember why it cannot be.

    Args:
        advance: is told how many more documents were scored.

    Raises:
        InputError: the output cannot be written to.
        Exception: whatever the engine raises. Nothing is written then; the shard may be to blame, or a device in a bad
            state, so the caller decides whether to try again.
    """
    done = out.done(shard.name)
    if done is not None:
        return done

    def scored(tables: Iterator[pa.Table]) -> Iterator[Transformed]:
        for table in _chunks(tables):
            yield _with_scores(table, engine)

    try:
        if shard.size == 0 and shard.uri.endswith((".gz", ".zst")):
            raise DamagedShard("truncated, file: it has no bytes")
        return map_shard(out, shard, job.source, scored, advance, job.config.damaged_shards)
    except DamagedShard as error:
        return fail_shard(out, shard, str(error))
    except OSError as error:
        raise InputError(f"{out.path} cannot be written to: {error}") from error


def score_or_fail(
    job: ScoringJob, shard: InputShard, engine: Engine, out: OutputDirectory, advance: Callable[[int], None]
) -> ShardResult:
    """The same, where nobody could do better with another engine: what that raises is why the shard failed."""
    try:
        return score_shard(job, shard, engine, out, advance)
    except MlFilterError:
        raise
    except torch.AcceleratorError as error:
        raise InputError(
            f"{described(error)}, over {shard.uri}: the device can do nothing more in this process. Run the same "
            "command again; with --workers 2 such a worker is replaced, and a shard that ends several fails alone"
        ) from error
    except Exception as error:
        logger.opt(exception=error).debug(f"Scoring {shard.uri}")
        return fail_shard(out, shard, described(error))


def described(error: BaseException) -> str:
    """An error of a library in one line."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def fail_shard(out: OutputDirectory, shard: InputShard, reason: str) -> ShardResult:
    """Remember that a shard failed, and say so."""
    logger.warning(f"{shard.uri} failed ({reason}); the other shards go on")
    return out.fail(shard.name, shard.uri, reason)


def _chunks(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Larger tables, so that batches of like length are full; bounded in rows and bytes."""
    pending: list[pa.Table] = []
    for table in tables:
        pending.append(table)
        if sum(t.num_rows for t in pending) >= _CHUNK_ROWS or sum(t.nbytes for t in pending) >= _CHUNK_BYTES:
            yield concat_tables(pending)
            pending = []
    if pending:
        yield concat_tables(pending)


def _with_scores(table: pa.Table, engine: Engine) -> Transformed:
    criteria = engine.info.criteria
    strata = {name: table[name].to_pylist() for name in ("language", "source") if name in table.column_names}
    judged = engine.judge(table["text"].to_pylist(), strata)
    scores = judged.scores.astype(np.float64)
    failed = ~np.isfinite(scores).all(axis=1)
    made: dict[str, pa.Array] = {}
    for criterion, column in zip(criteria, scores.T, strict=True):
        of = f"_{criterion.name}" if len(criteria) > 1 else ""
        made[f"score{of}"] = pa.array(column, mask=failed)
        whole = criterion.integer_scores(np.where(failed, criterion.low, column))
        made[f"int_score{of}"] = pa.array(whole, mask=failed)
    made["score_status"] = pa.array(np.where(failed, "failed", "scored"))
    if judged.scored_by is not None:
        made["scored_by"] = pa.array(judged.scored_by)
    table = rename_clashing_columns(table, tuple(made))
    for name, values in made.items():
        table = table.append_column(name, values)
    return Transformed(table, {"scored": int((~failed).sum()), "failed": int(failed.sum()), **judged.counts})
