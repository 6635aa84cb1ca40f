"""The commit of the code that is running, for manifests and runs."""

from __future__ import annotations

import os
import subprocess
from functools import cache
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]


@cache
def code_commit() -> str:
    """The commit of the checkout, with `-dirty` if tracked files differ from it.

    Without a checkout, it is what the build of the image recorded in ML_FILTER_COMMIT; empty: not known.
    """
    return _checked_out() or os.environ.get("ML_FILTER_COMMIT", "")


def _checked_out() -> str:
    if not (_ROOT / ".git").exists():
        return ""
    command = ["git", "-C", str(_ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):  # git is not installed, or the file system is very slow
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
