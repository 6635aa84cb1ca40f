"""The `ml-filter` command line. Every command calls one domain function and prints what it did."""

from __future__ import annotations

import os
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

    from ml_filter.settings import problems_in

    try:
        app()
    except MlFilterError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except ValidationError as error:
        print(f"error: {problems_in(error, error.title)}", file=sys.stderr)
        sys.exit(2)
