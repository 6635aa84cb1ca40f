"""Score a corpus shard by shard: every input column, plus `score`, `int_score` and `score_status`.

A head of several criteria writes `score_<criterion>` and `int_score_<criterion>` for each.

Delivery: exactly once. An input shard's documents are all in its output shard, or the shard is in the manifest's
`shards_failed` and none of them is. That holds whatever dies: a worker, the command, a machine.
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
from ml_filter.documents.manifest import FailedShard, Manifest, find_manifest
from ml_filter.documents.output import OutputDirectory, ShardResult
from ml_filter.documents.readers import InputShard, known_rows
from ml_filter.documents.shards import require_documents
from ml_filter.documents.sources import list_shards
from ml_filter.errors import ConfigError, InputError, TooManyFailures
from ml_filter.heads.arithmetic import steady_arithmetic
from ml_filter.heads.engine import load_engine
from ml_filter.heads.load import head_origin, resolve_head
from ml_filter.heads.train import head_parent
from ml_filter.progress import Progress, progress
from ml_filter.scoring.choice import Choice, choose
from ml_filter.scoring.config import ScoreConfig
from ml_filter.scoring.cores import usable_cores
from ml_filter.scoring.distributed import RayWorkers
from ml_filter.scoring.job import ScoringJob, score_or_fail
from ml_filter.scoring.workers import LocalWorkers, score_with

_SHOWN_FAILURES = 5
_RANK_VARIABLES = (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS"))


class Rank(NamedTuple):
    """One of `world` processes, numbered from 0, that share the shards of a corpus among them."""

    number: int
    world: int

    def share(self, shards: Sequence[InputShard]) -> list[InputShard]:
        """The shards that fall to this rank: of all ranks together each shard once."""
        return list(shards[self.number :: self.world])


def score_corpus(
    model_directory: str | Path, source: SourceConfig, config: ScoreConfig, output: str | Path
) -> Manifest:
    """Score every document of a corpus; one output shard an input shard, in memory that does not grow with it.

    Killed and called again, it goes on with the shards that are not finished, and those that failed. A column of the
    input that is named like one of ours is kept as `input_<name>`.

    Raises:
        TooManyFailures: a larger share of the shards failed than `max_failed_shards`, or of the documents than
            `max_failed_documents`; all the others are done.
        InputError: the head, the source or the output directory is not what it should be, or every shard failed.
        ConfigError: there is no such device here, or no Ray.
    """
    job = _plan(model_directory, source, config, output)
    with job.directory() as out:
        if not out.is_complete:
            out.clear_scratch()
            _reopen(out, job.shards)
            job = _settled(job, out)
            _score(job, job.shards, out)
            _finish(job, out, _results(out, job.shards))
        assert out.manifest is not None
        _judge(out.manifest.shards_failed, len(job.shards), out.manifest.counts, config, out.path)
        return out.manifest


def score_rank(
    model_directory: str | Path, source: SourceConfig, config: ScoreConfig, output: str | Path, rank: Rank
) -> Manifest | None:
    """Score the shards that fall to one of several ranks, which need to know nothing of each other.

    Args:
        output: one directory for all ranks, on a file system that they share, or a URL.

    Returns:
        The manifest, from the rank that finds every shard done; None from the others.

    Raises:
        As `score_corpus`, of this rank's shards.
    """
    if config.ray:
        raise ConfigError("ranks share the shards without a scheduler, Ray is one: give rank or ray, not both")
    job = _plan(model_directory, source, config, output)
    mine = rank.share(job.shards)
    with job.directory(f"rank-{rank.number}") as out:
        if not out.is_complete:
            out.clear_scratch()
            with out.alone():
                _reopen(out, mine)
            job = _settled(job, out)
            _score(job, mine, out)
            with out.alone():
                out.manifest = find_manifest(out.path)
                results = _results(out, job.shards)
                if out.manifest is None and len(results) == len(job.shards):
                    _finish(job, out, results)
        failed, counts = _outcome(out, mine)
        own = {shard.name for shard in mine}
        _judge([shard for shard in failed if shard.name in own], len(mine), counts, config, out.path)
        return out.manifest


def find_rank(rank: str, world: int | None, environment: Mapping[str, str] = os.environ) -> Rank:
    """The rank that was given as a number, or with `auto` the one that the launcher's environment names.

    Known are RANK and WORLD_SIZE (torchrun and others) and SLURM_PROCID and SLURM_NTASKS (srun).

    Raises:
        ConfigError: there is no such rank, or it is not known of how many.
    """
    given = rank
    if rank == "auto":
        found = [(environment[a], environment[b]) for a, b in _RANK_VARIABLES if a in environment and b in environment]
        if not found:
            listed = ", ".join(" with ".join(pair) for pair in _RANK_VARIABLES)
            raise ConfigError(f"rank auto: the environment has none of {listed}; give --rank and --world-size")
        rank, world = found[0][0], world or int(found[0][1])
    if world is None:
        raise ConfigError(f"rank {given}: of how many? give --world-size")
    if not rank.isdecimal() or int(rank) >= world:
        raise ConfigError(f"rank {rank}: ranks of {world} are numbered 0 to {world - 1}")
    return Rank(int(rank), world)


def _plan(model_directory: str | Path, source: SourceConfig, config: ScoreConfig, output: str | Path) -> ScoringJob:
    steady_arithmetic()  # workers inherit it
    shards, parents = list_shards(source)
    directory = resolve_head(model_directory)
    parents.append(head_parent(directory))
    # A worker on another machine downloads a head of the Hub for itself, at the same commit.
    return ScoringJob(head_origin(directory), source, config, str(output), tuple(shards), tuple(parents))


def _reopen(out: OutputDirectory, shards: Sequence[InputShard]) -> None:
    """Make failed shards open again."""
    if find_manifest(out.path) is not None:
        out.reopen()
    for name, result in _results(out, shards):
        if result.failed:
            out.forget(name)


def _settled(job: ScoringJob, out: OutputDirectory) -> ScoringJob:
    """The job with what its settings leave open: as an earlier run or another rank chose, else as is best here."""
    made_with = out.made_with
    if not made_with:
        sizes = [shard.size for shard in job.shards]
        size = None if None in sizes else sum(size or 0 for size in sizes)
        choice = choose(job.model_directory, job.config, size, _threads(job))
        if choice is None:
            return job
        made_with = out.settle(choice.model_dump())
    return replace(job, choice=Choice.model_validate(made_with))


def _threads(job: ScoringJob) -> int | None:
    """Of each worker; None: as many as torch takes."""
    config = job.config
    if config.workers == 1 and not config.ray:
        return None
    if config.ray not in (None, "local"):
        return config.worker_cpus or 1
    return config.worker_cpus or max(1, usable_cores() // min(config.workers, len(job.shards)))


def _score(job: ScoringJob, shards: Sequence[InputShard], out: OutputDirectory) -> None:
    """Score the shards that are open."""
    with progress("Scoring", known_rows(shards)) as bar:
        done = dict(_results(out, shards))
        bar.advance(sum(result.counts["read"] for result in done.values()))
        waiting = [shard for shard in shards if shard.name not in done]
        if waiting:
            _score_open(job, waiting, out, bar)


def _score_open(job: ScoringJob, shards: Sequence[InputShard], out: OutputDirectory, bar: Progress) -> None:
    config = job.config
    count = min(config.workers, len(shards))
    if count < config.workers:
        logger.info(
            f"{len(shards)} shards are open, {config.workers - count} of {config.workers} workers stay idle: a shard "
            "is scored by one worker, so a corpus in more files spreads better"
        )
    if config.ray:
        score_with(RayWorkers(job, out, count), shards, out, config.worker_attempts, bar.advance)
    elif config.workers > 1:
        score_with(LocalWorkers(job, out, count), shards, out, config.worker_attempts, bar.advance)
    else:
        engine = load_engine(job.model_directory, job.engine_config)
        for shard in shards:
            score_or_fail(job, shard, engine, out, bar.advance)


def _results(out: OutputDirectory, shards: Sequence[InputShard]) -> list[tuple[str, ShardResult]]:
    """The results of those shards that are done."""
    return list(out.all_done(shard.name for shard in shards).items())


def _failed(results: Sequence[tuple[str, ShardResult]]) -> list[FailedShard]:
    return [result.failed for _, result in results if result.failed]


def _finish(job: ScoringJob, out: OutputDirectory, results: Sequence[tuple[str, ShardResult]]) -> None:
    failed = _failed(results)
    if len(failed) == len(job.shards):
        raise InputError(f"no shard could be scored: {_listed(failed)}")
    require_documents(job.source, [result for _, result in results])
    out.finish(results)


def _outcome(out: OutputDirectory, shards: Sequence[InputShard]) -> tuple[Sequence[FailedShard], Mapping[str, int]]:
    """The failed shards and the counts: of the whole where it is finished, else of these shards."""
    if out.manifest is not None:
        return out.manifest.shards_failed, out.manifest.counts
    results = _results(out, shards)
    return _failed(results), sum((Counter(result.counts) for _, result in results), Counter())


def _judge(
    failed: Sequence[FailedShard], shards: int, counts: Mapping[str, int], config: ScoreConfig, path: str
) -> None:
    documents, unscored = counts.get("read", 0), counts.get("failed", 0)
    problems = []
    if len(failed) > config.max_failed_shards * shards:
        problems.append(
            f"{len(failed):,} of {shards:,} shards failed, more than max_failed_shards={config.max_failed_shards:g} "
            f"tolerates; the others are scored in {path}. Mend them and run the same command again: it scores only "
            f"those. {_listed(failed)}"
        )
    if unscored > config.max_failed_documents * documents:
        problems.append(
            f"{unscored:,} of {documents:,} documents got no score, more than "
            f"max_failed_documents={config.max_failed_documents:g} tolerates; they are in {path} with score_status "
            "failed. The head gave no number for them: mend it, or try --dtype float32, and score to another directory"
        )
    if problems:
        raise TooManyFailures(". ".join(problems))


def _listed(failed: Sequence[FailedShard]) -> str:
    shown = "; ".join(f"{shard.source} ({shard.reason})" for shard in failed[:_SHOWN_FAILURES])
    more = len(failed) - _SHOWN_FAILURES
    return shown + (f"; and {more:,} more" if more > 0 else "")
