"""A small version of the benchmark: a run that is killed repeatedly while it asks a misbehaving server."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "annotation_under_fire.py"
FAULTS = ("server_error", "hang", "malformed", "cut_off", "reset", "rate_limited")


@pytest.mark.slow
def test_a_run_that_is_killed_repeatedly_loses_nothing_and_repeats_no_finished_call():
    size = ("--documents", "150", "--kills", "5", "--dead", "3", "--latency", "0.1", "--timeout", "1.5")
    command = [
        sys.executable,
        str(BENCHMARK),
        *size,
        "--concurrency",
        "32",
        "--seed",
        "7",
    ]  # in which every fault comes up
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = dict(re.findall(r"^\| (\D.*?) \| (\d+) \|$", done.stdout, re.MULTILINE))
    assert int(figures["kills"]) >= 5
    assert figures["rows"] == figures["documents"] == "150"
    assert figures["finished calls asked again"] == "0"
    assert all(int(figures[f"requests that got {fault}"]) > 0 for fault in FAULTS)
