"""Score a corpus shard by shard: every input column, plus `score`, `int_score` and `score_status`.

A head with several criteria writes `score_<criterion>` and `int_score_<criterion>` for each.

Delivery is exactly once: either all documents of an input shard are in its output shard, or none are and the shard is
listed in the manifest's `shards_failed`. This holds if a worker, the command or a machine dies.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from loguru import logger

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.finished import ShardResult, first_reject
from ml_filter.documents.growing import GrowingDirectory
from ml_filter.documents.manifest import FailedShard, Manifest
from ml_filter.documents.output_directory import OutputDirectory
from ml_filter.documents.readers import InputShard, known_rows
from ml_filter.documents.rejects import nothing_read
from ml_filter.documents.sources import list_shards_with_states
from ml_filter.errors import ConfigError, InputError, TooManyFailures
from ml_filter.heads.encoder import steady_arithmetic
from ml_filter.heads.kinds import encoder_directory, load_head
from ml_filter.heads.store import HeadName, fetch_head
from ml_filter.metrics import Sample, exported
from ml_filter.progress import Progress, progress
from ml_filter.scoring.config import EngineChoice, ScoreConfig
from ml_filter.scoring.cores import threads_per_worker, usable_cores
from ml_filter.scoring.ray_workers import RayWorkers
from ml_filter.scoring.shard import ScoringJob, score_or_fail
from ml_filter.scoring.workers import LocalWorkers, score_with

_SHOWN_FAILURES = 5
_RANK_VARIABLES = (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS"))


class Rank(NamedTuple):
    """One of `world_size` processes, numbered from 0, that divide the shards of a corpus among themselves."""

    number: int
    world_size: int

    def share(self, shards: Sequence[InputShard]) -> list[InputShard]:
        """The shards of this rank. Each shard belongs to exactly one rank."""
        return list(shards[self.number :: self.world_size])


def score_corpus(head: HeadName, source: SourceConfig, config: ScoreConfig, output: str | Path) -> Manifest:
    """Score every document of a corpus to one output shard per input shard, in memory that does not grow with it.

    Resumable: a second call scores the shards that are unfinished or failed. An input column with the name of a score
    column is renamed to `input_<name>`.

    Args:
        head: directory, URL, `hf://OWNER/NAME[@REVISION]` or what `read_head` returned.
        output: directory or URL.

    Raises:
        TooManyFailures: more shards failed than `max_failed_shards` allows, or more documents than
            `max_failed_documents`; all others are scored.
        InputError: the head, the source or the output directory is invalid, or every shard failed.
        ConfigError: the device is not available, or Ray is not installed.
    """
    job = _plan(head, source, config, output)
    manifest = _score_and_finish(job, job.shards)
    assert manifest is not None
    return manifest


def score_rank(
    head: HeadName, source: SourceConfig, config: ScoreConfig, output: str | Path, rank: Rank
) -> Manifest | None:
    """Score the shards of one of several ranks, which do not communicate with each other.

    Args:
        output: one directory for all ranks, on a shared file system, or a URL.

    Returns:
        The manifest if every shard of the corpus is finished, None if other ranks are still working.

    Raises:
        As `score_corpus`, for the shards of this rank.
    """
    if config.ray:
        raise ConfigError("give either a rank or ray, not both: Ray distributes the shards itself")
    job = _plan(head, source, config, output)
    return _score_and_finish(job, rank.share(job.shards), f"rank-{rank.number}")


def find_rank(rank: str, world_size: int | None, environment: Mapping[str, str] = os.environ) -> Rank:
    """Parse a rank, or with `auto` read it from the environment that a launcher sets.

    `auto` knows RANK and WORLD_SIZE (torchrun and others) and SLURM_PROCID and SLURM_NTASKS (srun).

    Raises:
        ConfigError: the rank or the world size is missing or out of range.
    """
    number = rank
    if rank == "auto":
        pairs = [(environment[a], environment[b]) for a, b in _RANK_VARIABLES if a in environment and b in environment]
        if not pairs:
            variables = ", or ".join(" and ".join(pair) for pair in _RANK_VARIABLES)
            raise ConfigError(f"--rank auto needs {variables} in the environment; give --rank N and --world-size")
        number, world_size = pairs[0][0], world_size or int(pairs[0][1])
    if world_size is None:
        raise ConfigError("--rank requires --world-size")
    if not number.isdecimal() or int(number) >= world_size:
        raise ConfigError(f"invalid rank {number}: the ranks of {world_size} are numbered 0 to {world_size - 1}")
    return Rank(int(number), world_size)


def _plan(head: HeadName, source: SourceConfig, config: ScoreConfig, output: str | Path) -> ScoringJob:
    steady_arithmetic()  # before workers start, which inherit it
    shards, parents = list_shards_with_states(source)
    local = fetch_head(head)
    parents.append(local.parent)
    # A Ray worker on another machine fetches the head itself.
    name = local.location if config.ray else str(local.directory)
    has_encoder = encoder_directory(local.directory) is not None
    if has_encoder:
        import torch

        torch.set_num_threads(min(torch.get_num_threads(), usable_cores()))  # it ignores the CPU limit of a container
    return ScoringJob(name, source, config, str(output), tuple(shards), tuple(parents), has_encoder)


def _score_and_finish(job: ScoringJob, shards: Sequence[InputShard], part: str | None = None) -> Manifest | None:
    """Score the given shards of the job; whoever finds every shard of the job finished writes the manifest."""
    with job.directory(part) as out:
        if not out.is_complete:
            out.clear_scratch()
            with out.exclusive():
                _reuse_finished(job, out, shards)
        if not out.is_complete:
            job = _with_engine_choice(job, out)
            _score_open_shards(job, shards, out)
            with out.exclusive():
                results = _results(out, job.shards)
                if out.find_manifest() is None and len(results) == len(job.shards):
                    _finish(job, out, results)
        _check_failures(job, shards, out)
        return out.manifest


def _reuse_finished(job: ScoringJob, out: GrowingDirectory, shards: Sequence[InputShard]) -> None:
    """Keep what is scored and has not changed; forget the failures of an earlier run among the given shards."""
    out.reuse({shard.name: str(shard.state) for shard in job.shards})
    for name, result in _results(out, shards):
        if result.failed:
            out.forget(name)


def _with_engine_choice(job: ScoringJob, out: OutputDirectory) -> ScoringJob:
    """The job with the engine that an earlier run or another rank chose for this output, or else a new choice."""
    if not job.has_encoder:
        return job
    recorded = out.made_with
    if not recorded:
        from ml_filter.scoring.engine_choice import choose_engine

        is_one_process = job.config.workers == 1 and not job.config.ray
        threads = None if is_one_process else threads_per_worker(job.config, min(job.config.workers, len(job.shards)))
        choice = choose_engine(job.head, job.config, job.source, job.shards, threads)
        if choice is None:
            return job
        recorded = out.settle(choice.model_dump())
    return replace(job, engine_choice=EngineChoice.model_validate(recorded))


def _score_open_shards(job: ScoringJob, shards: Sequence[InputShard], out: OutputDirectory) -> None:
    states = {"listed": len(shards)}
    with progress("Scoring", known_rows(shards)) as bar:
        finished = dict(_results(out, shards))
        bar.advance(before := sum(result.counts["read"] for result in finished.values()))
        waiting = [shard for shard in shards if shard.name not in finished]

        def samples() -> list[Sample]:
            counts = [Sample("scoring_shards", count, {"state": state}) for state, count in states.items()]
            return [Sample("scoring_documents", bar.done - before), *counts]

        if waiting:
            with exported("scoring", {"part": out.part or "all"}, samples):
                _distribute(job, waiting, out, bar)
                results = _results(out, shards)
                states["failed"] = sum(result.failed is not None for _, result in results)
                states["finished"] = len(results) - states["failed"]


def _distribute(job: ScoringJob, shards: Sequence[InputShard], out: OutputDirectory, bar: Progress) -> None:
    config = job.config
    count = min(config.workers, len(shards))
    if count < config.workers:
        logger.info(
            f"{config.workers - count} of {config.workers} workers are idle: only {len(shards)} shards are left, and "
            "each is scored by one worker. Split the corpus into more files to use all workers"
        )
    if config.ray:
        score_with(RayWorkers(job, out, count), shards, out, config.worker_attempts, bar.advance)
    elif config.workers > 1:
        score_with(LocalWorkers(job, out, count), shards, out, config.worker_attempts, bar.advance)
    else:
        head = load_head(job.head, job.engine_config)
        for shard in shards:
            score_or_fail(job, shard, head, out, bar.advance)


def _results(out: OutputDirectory, shards: Sequence[InputShard]) -> list[tuple[str, ShardResult]]:
    """The results of those shards that are finished."""
    return list(out.finished_shards(shard.name for shard in shards).items())


def _finish(job: ScoringJob, out: OutputDirectory, results: Sequence[tuple[str, ShardResult]]) -> None:
    failed, counts = _outcome(results)
    if len(failed) == len(job.shards):
        raise InputError(f"no shard could be scored: {_list_failures(failed)}")
    if counts["read"] == 0:
        raise nothing_read(job.source.paths, counts, first=first_reject(results))
    out.finish(results)


def _outcome(results: Sequence[tuple[str, ShardResult]]) -> tuple[list[FailedShard], Counter[str]]:
    counts = sum((Counter(result.counts) for _, result in results), Counter())
    return [result.failed for _, result in results if result.failed], counts


def _check_failures(job: ScoringJob, shards: Sequence[InputShard], out: OutputDirectory) -> None:
    """Raise TooManyFailures if more of these shards, or of the documents, failed than the settings allow."""
    if out.manifest is not None:
        failed, counts = out.manifest.shards_failed, out.manifest.counts
    else:
        failed, counts = _outcome(_results(out, shards))
    names = {shard.name for shard in shards}
    failed = [shard for shard in failed if shard.name in names]
    documents, unscored = counts.get("read", 0), counts.get("failed", 0)
    problems = []
    if len(failed) > job.config.max_failed_shards * len(shards):
        problems.append(
            f"{len(failed):,} of {len(shards):,} shards failed, more than "
            f"max_failed_shards={job.config.max_failed_shards:g} allows; the others are scored in {out.path}. Repair "
            f"the failed shards and run the same command again: it scores only those. {_list_failures(failed)}"
        )
    if unscored > job.config.max_failed_documents * documents:
        problems.append(
            f"{unscored:,} of {documents:,} documents got no score, more than "
            f"max_failed_documents={job.config.max_failed_documents:g} allows; they are in {out.path} with "
            "score_status failed. The head returned NaN for them: check the head, or try --dtype float32 with another "
            "--output"
        )
    if problems:
        raise TooManyFailures(". ".join(problems))


def _list_failures(failed: Sequence[FailedShard]) -> str:
    shown = "; ".join(f"{shard.source} ({shard.reason})" for shard in failed[:_SHOWN_FAILURES])
    more = len(failed) - _SHOWN_FAILURES
    return shown + (f"; and {more:,} more" if more > 0 else "")
