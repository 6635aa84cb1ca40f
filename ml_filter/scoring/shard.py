"""Score one input shard to one output shard.

Every process that takes part in scoring a corpus calls `score_shard`: the command itself, its workers, Ray actors and
the ranks of a cluster job. Calling it again for the same shard, later or at the same time, gives the same result.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from loguru import logger

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.finished import ShardResult
from ml_filter.documents.growing import GrowingDirectory
from ml_filter.documents.manifest import Parent, digest_of
from ml_filter.documents.output_directory import OutputDirectory, Resumption
from ml_filter.documents.readers import InputShard, read_shard
from ml_filter.documents.rejects import DAMAGE, RejectsLog
from ml_filter.documents.tables import concat_tables, rename_clashing_columns
from ml_filter.errors import InputError, MlFilterError
from ml_filter.heads.kinds import Head
from ml_filter.scoring.config import EngineChoice, ScoreConfig

_CHUNK_ROWS = 4000
_CHUNK_BYTES = 64 * 2**20
_SCHEDULING_SETTINGS = frozenset(
    {"workers", "ray", "worker_cpus", "worker_gpus", "worker_attempts", "max_failed_shards", "max_failed_documents"}
)
"""Settings that scores do not depend on: a run may be resumed with other values."""


@dataclass(frozen=True)
class ScoringJob:
    """What to score, with which head, and where to write the result. It is sent to workers, so it must pickle."""

    head: str
    """Directory, or a URL or Hub name for workers on other machines."""
    source: SourceConfig
    config: ScoreConfig
    output: str
    shards: tuple[InputShard, ...]
    parents: tuple[Parent, ...]
    """Of the source, then the head's."""
    has_encoder: bool = True
    """Without one, torch is not imported, which takes longer than loading a hashing head."""
    engine_choice: EngineChoice | None = None
    """None until the engine is chosen, and for heads without an encoder."""

    @property
    def engine_config(self) -> ScoreConfig:
        """The settings, with `auto` replaced by the choice."""
        return self.config if self.engine_choice is None else self.engine_choice.apply(self.config)

    def directory(self, part: str | None = None, *, is_helper: bool = False) -> GrowingDirectory:
        """The output directory, not entered yet; see OutputDirectory for `part` and `is_helper`.

        The settings, which include the paths of the source, and the head pin it; the content of the source does not.
        """
        settings = {
            "source": self.source.model_dump(mode="json"),
            "score": self.config.model_dump(mode="json", exclude=set(_SCHEDULING_SETTINGS)),
        }
        return GrowingDirectory(
            self.output,
            "scored",
            settings,
            self.parents,
            fixed=self.parents[-1:],
            part=part,
            is_helper=is_helper,
            resumption=Resumption(self._resumption_digest(), self._finished_shards_are_valid),
        )

    def _resumption_digest(self) -> str:
        """Digest of what must not change before all shards are scored."""
        score = self.config.model_dump(mode="json", exclude={*_SCHEDULING_SETTINGS, "damaged_shards"})
        source = self.source.model_dump(mode="json")
        return digest_of([source, score, self.parents[-1].digest])

    def _finished_shards_are_valid(self, out: OutputDirectory) -> bool:
        """Whether each finished shard is allowed by the current settings."""
        finished = out.finished_shards(shard.name for shard in self.shards).values()
        are_damaged = (f"rejected_{reason}" in result.counts for result in finished for reason in DAMAGE)
        return self.config.damaged_shards == "keep" or not any(are_damaged)


class DamagedShard(Exception):
    """The shard cannot be read, in whole or in part; nothing of it is written."""


def score_shard(
    job: ScoringJob, shard: InputShard, head: Head, out: OutputDirectory, advance: Callable[[int], None]
) -> ShardResult:
    """Score one input shard to one output shard, or record why it failed. A finished shard is not scored again.

    Args:
        advance: called with the number of documents scored since the last call.

    Raises:
        InputError: the output cannot be written to.
        Exception: whatever the head raises; nothing is written then. Either the shard or a broken device may be the
            cause, so the caller decides whether to try again.
    """
    finished = out.finished_shard(shard.name)
    if finished is not None:
        return finished
    try:
        return _read_score_write(job, shard, head, out, advance)
    except DamagedShard as error:
        return fail_shard(out, shard, str(error))
    except OSError as error:
        raise InputError(f"cannot write to {out.path}: {error}") from error


def score_or_fail(
    job: ScoringJob, shard: InputShard, head: Head, out: OutputDirectory, advance: Callable[[int], None]
) -> ShardResult:
    """`score_shard` without a retry: if the head raises, the shard fails for that reason."""
    try:
        return score_shard(job, shard, head, out, advance)
    except MlFilterError:
        raise
    except Exception as error:
        torch = sys.modules.get("torch")  # not imported for a head without an encoder
        if torch and isinstance(error, torch.AcceleratorError):
            raise InputError(
                f"{describe_error(error)} while scoring {shard.uri}. The device is unusable for the rest of this "
                "process: run the same command again. With --workers 2 a broken worker is replaced, and a shard that "
                "breaks several workers fails without ending the run"
            ) from error
        logger.opt(exception=error).debug(f"Scoring {shard.uri}")
        return fail_shard(out, shard, describe_error(error))


def fail_shard(out: OutputDirectory, shard: InputShard, reason: str) -> ShardResult:
    """Record and log that a shard failed."""
    logger.warning(f"{shard.uri} failed ({reason}); continuing with the other shards")
    return out.record_failure(shard.name, shard.uri, reason, shard.state)


def describe_error(error: BaseException) -> str:
    """The type and the first line of an exception from a library."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def _read_score_write(
    job: ScoringJob, shard: InputShard, head: Head, out: OutputDirectory, advance: Callable[[int], None]
) -> ShardResult:
    started = time.monotonic()
    counts: Counter[str] = Counter(read=0)
    with out.new_shard(shard.name) as writer, out.new_rejects(shard.name) as rejects:
        for table in _large_tables(_read(shard, job.source, rejects)):
            scored, scored_counts = add_scores(table, head)
            writer.write(scored)
            counts.update({"read": table.num_rows, **scored_counts})
            advance(table.num_rows)
        # Damage is known only after reading everything. Raising here discards the file that is being written.
        if rejects.damage and (job.config.damaged_shards == "fail" or counts["read"] == 0):
            raise DamagedShard(rejects.damage)
    if counts["read"] == rejects.total == 0:
        logger.warning(f"{shard.uri} is empty")
        counts["shards_empty"] = 1
    return out.commit(shard.name, writer, rejects, counts, shard.state, time.monotonic() - started)


def _read(shard: InputShard, source: SourceConfig, rejects: RejectsLog) -> Iterator[pa.Table]:
    try:
        yield from read_shard(shard, source, rejects)
    except InputError as error:
        raise DamagedShard(str(error)) from error
    except Exception as error:  # file systems, decoders and the Hub client have no common base class
        raise DamagedShard(f"{type(error).__name__}: {error}") from error


def _large_tables(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Join small tables, so that the head can fill batches with texts of similar length; bounded in memory."""
    pending: list[pa.Table] = []
    for table in tables:
        pending.append(table)
        if sum(t.num_rows for t in pending) >= _CHUNK_ROWS or sum(t.nbytes for t in pending) >= _CHUNK_BYTES:
            yield concat_tables(pending)
            pending = []
    if pending:
        yield concat_tables(pending)


def add_scores(table: pa.Table, head: Head) -> tuple[pa.Table, dict[str, int]]:
    """The table with its score columns, and what to count: documents scored and failed, and the head's own counts."""
    criteria = head.info.criteria
    strata = {name: table[name].to_pylist() for name in ("language", "source") if name in table.column_names}
    result = head.score_with_details(table["text"].to_pylist(), strata)
    scores = result.scores.astype(np.float64)
    failed = ~np.isfinite(scores).all(axis=1)
    columns: dict[str, pa.Array] = {}
    for criterion, values in zip(criteria, scores.T, strict=True):
        suffix = f"_{criterion.name}" if len(criteria) > 1 else ""
        columns[f"score{suffix}"] = pa.array(values, mask=failed)
        integers = criterion.integer_scores(np.where(failed, criterion.low, values))
        columns[f"int_score{suffix}"] = pa.array(integers, mask=failed)
    columns["score_status"] = pa.array(np.where(failed, "failed", "scored"))
    if result.scored_by is not None:
        columns["scored_by"] = pa.array(result.scored_by)
    table = rename_clashing_columns(table, tuple(columns))
    for name, column in columns.items():
        table = table.append_column(name, column)
    return table, {"scored": int((~failed).sum()), "failed": int(failed.sum()), **result.counts}
