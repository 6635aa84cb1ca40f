"""How many cores a process may use: its CPU affinity, limited by the CPU time that its control groups grant.

A container with a CPU limit sees every core of its machine. If it starts a thread on each, the kernel suspends it for
most of every scheduling period, so the limit matters. Sources: the kernel's cgroup-v2.rst (cpu.max) and sched-bwc.rst
(cpu.cfs_quota_us).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from ml_filter.scoring.config import RAY_LOCAL, ScoreConfig


def threads_per_worker(config: ScoreConfig, workers: int) -> int:
    """Threads of each worker: `worker_cpus`; else 1 on a Ray cluster, or an equal share of this machine's cores."""
    if config.worker_cpus is not None:
        return config.worker_cpus
    return max(1, usable_cores() // workers) if config.ray in (None, RAY_LOCAL) else 1


def usable_cores() -> int:
    """Whole cores that this process may use, at least one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = cpu_limit()
    return cores if limit is None else max(1, min(cores, int(limit)))


def cpu_limit(system: Path = Path("/")) -> float | None:
    """Cores' worth of CPU time that this process's control groups (version 1 or 2) grant; None means no limit.

    Args:
        system: root of the file system that contains /proc and /sys.
    """
    limits = [limit for group in _control_groups(system) if (limit := _limit_of(group)) is not None]
    return min(limits, default=None)


def _control_groups(system: Path) -> Iterator[Path]:
    """Directories of this process's control groups and their ancestors.

    A container may see its own group as the root, so some of these directories may not exist.
    """
    try:
        lines = (system / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = system / "sys/fs/cgroup" / ("cpu" if controllers else "")
        group = root / path.lstrip("/")
        yield from (ancestor for ancestor in (group, *group.parents) if ancestor.is_relative_to(root))


def _limit_of(group: Path) -> float | None:
    if (group / "cpu.max").exists():
        quota, period = (group / "cpu.max").read_text().split()
    elif (group / "cpu.cfs_quota_us").exists():
        quota, period = ((group / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
    else:
        return None
    return None if quota in ("max", "-1") else int(quota) / int(period)
