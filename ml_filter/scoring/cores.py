"""How many cores this process may use: those it may run on, and no more than its control group's share of time.

A Kubernetes pod or container with a CPU limit sees all cores of its machine. With a thread on each it stands still for
most of every period, so the limit counts. Sources: the kernel's documentation, cgroup-v2.rst (cpu.max) and
sched-bwc.rst (cpu.cfs_quota_us).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


def usable_cores() -> int:
    """The whole cores that this process may use, at least one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = cpu_limit()
    return cores if limit is None else max(1, min(cores, int(limit)))


def cpu_limit(system: Path = Path("/")) -> float | None:
    """The cores' worth of time that the control groups of this process grant, of version 1 or 2; None: no limit.

    Args:
        system: the root of the file system, below which /proc and /sys lie.
    """
    limits = [limit for group in _groups(system) if (limit := _limit_of(group)) is not None]
    return min(limits, default=None)


def _groups(system: Path) -> Iterator[Path]:
    """The directories of the control groups that this process is in, and of those above them.

    A container may see its own group as the root, so what is not there is no reason to stop.
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
        yield from (above for above in (group, *group.parents) if above.is_relative_to(root))


def _limit_of(group: Path) -> float | None:
    if (group / "cpu.max").exists():
        quota, period = (group / "cpu.max").read_text().split()
    elif (group / "cpu.cfs_quota_us").exists():
        quota, period = ((group / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
    else:
        return None
    return None if quota in ("max", "-1") else int(quota) / int(period)
