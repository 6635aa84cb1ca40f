"""How many cores a process may use, with control groups as Linux writes them."""

from pathlib import Path

import pytest

from ml_filter.scoring.config import ScoreConfig
from ml_filter.scoring.cores import cpu_limit, threads_per_worker, usable_cores

PERIOD = "100000\n"
POD = "kubepods.slice/kubepods-burstable.slice"
HOST_GROUPS = "4:cpu,cpuacct:/kubepods/pod1/container\n3:memory:/kubepods/pod1\n"
SYSTEMS = {
    "version 2 in a container that sees its own group as the root": (
        {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "250000 100000\n"},
        2.5,
    ),
    "version 2 with a lower limit in the parent group": (
        {
            "proc/self/cgroup": f"0::/{POD}/container\n",
            f"sys/fs/cgroup/{POD}/container/cpu.max": "max 100000\n",
            f"sys/fs/cgroup/{POD}/cpu.max": "400000 100000\n",
            "sys/fs/cgroup/kubepods.slice/cpu.max": "800000 100000\n",
        },
        4.0,
    ),
    "version 2 without a limit": ({"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/cpu.max": "max 100000\n"}, None),
    "version 1 on a host": (
        {
            "proc/self/cgroup": HOST_GROUPS,
            "sys/fs/cgroup/cpu/kubepods/pod1/container/cpu.cfs_quota_us": "50000\n",
            "sys/fs/cgroup/cpu/kubepods/pod1/container/cpu.cfs_period_us": PERIOD,
        },
        0.5,
    ),
    "version 1 in a container that sees the path of the host": (
        {
            "proc/self/cgroup": HOST_GROUPS,
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "300000\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": PERIOD,
        },
        3.0,
    ),
    "version 1 without a limit": (
        {
            "proc/self/cgroup": "4:cpu,cpuacct:/\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": PERIOD,
        },
        None,
    ),
    "no control groups": ({}, None),
}


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_lowest_limit_of_a_process_and_its_parent_groups_applies(system, tmp_path: Path):
    files, expected = SYSTEMS[system]
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    assert cpu_limit(tmp_path) == expected


def test_at_least_one_core_is_usable():
    assert usable_cores() >= 1


@pytest.mark.parametrize(
    ("config", "threads"),
    [
        (ScoreConfig(), 4),
        (ScoreConfig(ray="local"), 4),
        (ScoreConfig(ray="auto"), 1),
        (ScoreConfig(worker_cpus=3), 3),
    ],
)
def test_workers_share_the_cores_of_a_machine_and_get_one_each_on_a_cluster(config, threads, monkeypatch):
    monkeypatch.setattr("ml_filter.scoring.cores.usable_cores", lambda: 9)
    assert threads_per_worker(config, 2) == threads
