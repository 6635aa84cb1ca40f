"""Progress of long work: a bar with rate and remaining time on a terminal, otherwise a log line every 10 seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from loguru import logger
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress
from rich.text import Text

LOG_EVERY_S = 10.0


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.finished_speed or task.speed or 0:,.1f}/s", style="cyan")


class _Note(ProgressColumn):
    """Computed when the bar is drawn, not for every item."""

    def render(self, task: Task) -> Text:
        return Text(task.fields["note"](), style="dim")


class Progress:
    """Counts finished items. `advance` is cheap enough to be called for each item.

    Args:
        title: what is being done.
        total: number of items; None: unknown.
        bar: where to show it; None: in log lines.
        note: called for additional text whenever progress is shown.
    """

    def __init__(
        self, title: str, total: int | None, bar: RichProgress | None = None, note: Callable[[], str] | None = None
    ) -> None:
        self.title, self.total, self.done = title, total, 0
        self._note = note or str
        self._bar = bar
        self._task = bar.add_task(title, total=total, note=self._note) if bar else None
        self._start = self._last_log = time.monotonic()
        self._logged = -1

    def advance(self, count: int = 1) -> None:
        """Count `count` more items as finished."""
        self.done += count
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, advance=count)
        elif time.monotonic() - self._last_log >= LOG_EVERY_S:
            self.log()

    def skip(self, count: int) -> None:
        """Remove items that need no work from the total (negative: add items), so that the rate excludes them."""
        if count and self.total is not None:
            self.total -= count
            if self._bar is not None and self._task is not None:
                self._bar.update(self._task, total=self.total)

    def log(self) -> None:
        """Log the progress."""
        self._last_log, self._logged = (now := time.monotonic()), self.done
        rate = self.done / max(now - self._start, 1e-9)
        line = f"{self.title}: {self.done:,}"
        line += f" of {self.total:,}" if self.total else ""
        line += f", {rate:,.1f}/s"
        if self.total and self.done:
            line += f", {max(self.total - self.done, 0) / rate:,.0f} s left"
        note = self._note()
        logger.info(f"{line}, {note}" if note else line)

    def close(self) -> None:
        """Log the final state, unless the last line already did."""
        if self._bar is None and self.done != self._logged:
            self.log()


@contextmanager
def progress(title: str, total: int | None = None, note: Callable[[], str] | None = None) -> Iterator[Progress]:
    """Show progress on standard error; for the arguments see `Progress`."""
    if not sys.stderr.isatty():
        log = Progress(title, total, None, note)
        yield log
        log.close()
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        _Note(),
    )
    with RichProgress(*columns, console=Console(stderr=True)) as bar:
        yield Progress(title, total, bar, note)
