"""Shared by the poe tasks: parse arguments, run the task, return an exit code."""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path

from ml_filter.errors import MlFilterError

_DEFAULTS = {
    "ZENML_ANALYTICS_OPT_IN": "false",
    "ZENML_AUTO_OPEN_DASHBOARD": "false",
    "ZENML_ENABLE_RICH_TRACEBACK": "false",
    "SAGEMAKER_ADMIN_CONFIG_OVERRIDE": str(Path(__file__).with_name("sagemaker-sdk.yaml")),  # no telemetry
    "SAGEMAKER_SUPPRESS_V2_WARNING": "1",
}
"""Defaults of the environment for the libraries that the tasks use."""


def run_task(
    parser: ArgumentParser,
    task: Callable[[Namespace], None],
    arguments: Sequence[str] | None = None,
    *,
    quiet: bool = False,
) -> int:
    """Parse the arguments and run the task. Errors are printed and become the exit code.

    Args:
        arguments: None: those of the process.
        quiet: the task prints what it does, so ZenML logs only warnings.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    options, rest = parser.parse_known_args([item for item in arguments if item != "--"])  # poe passes its own "--"
    if rest:  # argparse takes no settings after an option
        has_settings = hasattr(options, "overrides")
        if unknown := [argument for argument in rest if argument.startswith("-") or not has_settings]:
            settings = "settings are NAME=VALUE; " if has_settings else ""
            print(f"error: unknown arguments: {' '.join(unknown)}; {settings}see --help", file=sys.stderr)
            return 2
        options.overrides += rest
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    if quiet:
        os.environ.setdefault("ZENML_LOGGING_VERBOSITY", "WARN")
    try:
        task(options)
    except MlFilterError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0
