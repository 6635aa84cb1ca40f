"""The `ml-filter` command line. Each command calls one domain function and prints the result."""

from __future__ import annotations

import errno
import os
import sqlite3
import sys
from collections.abc import Sequence

# --help lists the commands in the order of these imports
from ml_filter.cli import feature, heads, ablation, instruct, tuning, judging, retrieval, fetch
from ml_filter.cli.command import app
from ml_filter.errors import MlFilterError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and print errors to standard error.

    Args:
        arguments: the command line without the program's name; None: that of the process.

    Returns:
        The exit code: 0 done, 1 more failures than tolerated, 2 bad usage or input.
    """
    # Arrow's own memory pool keeps freed memory; the system's returns it, so that memory use stays flat. Arrow reads
    # the variable when it is loaded, which no import above does.
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    from pydantic import ValidationError

    from ml_filter.config import problems_in

    try:
        app(arguments)
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else 0
    except MlFilterError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except ValidationError as error:
        print(f"error: {problems_in(error, error.title)}", file=sys.stderr)
        return 2
    except (OSError, sqlite3.OperationalError) as error:
        if not _is_full_disk(error):
            raise
        print(
            f"error: {error}. Free space on the disk of --output and of temporary files (TMPDIR), or raise the limit, "
            "then run the same command again to resume",
            file=sys.stderr,
        )
        return 2
    return 0


def _is_full_disk(error: OSError | sqlite3.OperationalError) -> bool:
    if isinstance(error, sqlite3.Error):
        return error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_FULL
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
