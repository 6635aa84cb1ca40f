"""Promote a version of a head, or roll back. The body of the poe tasks `promote` and `rollback`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import get_args

from ml_filter.evaluation.config import Stage
from tools.task import run_task


def main(arguments: Sequence[str] | None = None) -> int:
    """Promote or roll back; returns the exit code: 0 done, 2 not possible."""
    return run_task(_parser(), _move, arguments, quiet=True)


def _move(options: argparse.Namespace) -> None:
    from steps import registry

    if options.command == "promote":
        print(registry.promote(options.model, options.version, options.to, force=options.force, reason=options.reason))
    else:
        print(registry.roll_back(options.model, options.reason))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="poetry poe", description="Move versions of a head between stages.")
    commands = parser.add_subparsers(dest="command", required=True)
    promote = commands.add_parser(
        "promote",
        prog="poetry poe promote",
        description="Move a version of a model to production or staging, if the paired test and the human gate of its "
        "training run allow it and it was compared with the version that is in production now. The version that it "
        "replaces is archived.",
        epilog="examples: poetry poe promote educational_value_head 3; "
        "poetry poe promote educational_value_head staging --to production; "
        "poetry poe promote educational_value_head 2 --force --reason 'version 3 scores forums too high'",
    )
    promote.add_argument("model", metavar="MODEL", help="name of the model in ZenML: model.name in the YAML")
    promote.add_argument("version", metavar="VERSION", help="number, name or stage of the version")
    promote.add_argument("--to", choices=get_args(Stage), default="production", help="new stage (default: production)")
    promote.add_argument(
        "--force", action="store_true", help="ignore the decision of the training run; requires --reason"
    )
    promote.add_argument("--reason", metavar="TEXT", help="recorded with the version")
    rollback = commands.add_parser(
        "rollback",
        prog="poetry poe rollback",
        description="Return the previous version to production. The current one is archived.",
        epilog="example: poetry poe rollback educational_value_head --reason 'keeps too few recipes'",
    )
    rollback.add_argument("model", metavar="MODEL", help="name of the model in ZenML")
    rollback.add_argument("--reason", metavar="TEXT", help="recorded with the version that is archived")
    return parser


if __name__ == "__main__":
    sys.exit(main())
