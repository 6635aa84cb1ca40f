"""The `ml-filter` command line. Every command calls one domain function and prints what it did."""

from __future__ import annotations

import errno
import os
import sqlite3
import sys

from ml_filter.cli import documents, bill, annotation, llm, agreement, training, inference, serving
from ml_filter.cli.app import app
from ml_filter.errors import MlFilterError


def main() -> None:
    """Run the command line; errors end it with their reason and exit code (docs: 0 done, 1 failures, 2 bad input)."""
    # Arrow's own pool keeps what it once held. The system's gives it back, so that memory stays flat; Arrow reads this
    # when it is loaded, which no import here does.
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    from pydantic import ValidationError

    from ml_filter.config import problems_in

    try:
        app()
    except MlFilterError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except ValidationError as error:
        print(f"error: {problems_in(error, error.title)}", file=sys.stderr)
        sys.exit(2)
    except (OSError, sqlite3.OperationalError) as error:
        if not _is_full_disk(error):
            raise
        print(
            f"error: {error}. Free space on the disk of --output and of temporary files (TMPDIR), or raise the limit, "
            "and run the same command again: it goes on where it stopped",
            file=sys.stderr,
        )
        sys.exit(2)


def _is_full_disk(error: OSError | sqlite3.OperationalError) -> bool:
    if isinstance(error, sqlite3.Error):
        return error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_FULL
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
