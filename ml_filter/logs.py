"""Logging set-up for the commands and for pipelines. Libraries only ever call `loguru.logger`."""

from __future__ import annotations

import logging
import sys

from loguru import logger

_CHATTY = ("httpx", "httpx2", "openai", "matplotlib", "trafilatura", "htmldate", "filelock", "fsspec", "transformers")
"""Libraries that log a line for every request or page."""


def configure_logging(*, to_standard_logging: bool = False, level: str = "INFO") -> None:
    """Send log lines to standard error, or to standard `logging`.

    ZenML records all standard error of a step as errors, so steps use standard `logging`.
    """
    for chatty in _CHATTY:
        logging.getLogger(chatty).setLevel(logging.WARNING)
    logger.remove()
    if to_standard_logging:
        target = logging.getLogger("ml_filter")
        logger.add(lambda m: target.log(m.record["level"].no, m.record["message"]), level=level, format="{message}")
    else:
        # Looked up for each line: a program that calls several commands may replace sys.stderr between them.
        logger.add(
            lambda line: print(line, end="", file=sys.stderr),
            level=level,
            format="<dim>{time:HH:mm:ss}</dim> {level.name:<7} {message}",
            colorize=sys.stderr.isatty(),
        )
