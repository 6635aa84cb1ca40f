"""Progress of long work: a bar with rate and remaining time on a terminal, a line now and then elsewhere."""

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
    """Made when it is shown, not with each item."""

    def render(self, task: Task) -> Text:
        return Text(task.fields["note"](), style="dim")


class Progress:
    """Counts finished items; `advance` is cheap enough to call for each. `note` says more, each time it is shown."""

    def __init__(
        self, what: str, total: int | None, bar: RichProgress | None, note: Callable[[], str] | None = None
    ) -> None:
        self.what, self.total, self.done = what, total, 0
        self._note = note or str
        self._bar = bar
        self._task = bar.add_task(what, total=total, note=self._note) if bar else None
        self._start = self._logged = time.monotonic()
        self.logged = -1

    def advance(self, n: int = 1) -> None:
        """Count `n` more items as finished."""
        self.done += n
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, advance=n)
        elif time.monotonic() - self._logged >= LOG_EVERY_S:
            self.log()

    def skip(self, n: int) -> None:
        """Take `n` items off the total that are no work (negative: add some), so that they are in no rate either."""
        if n and self.total is not None:
            self.total -= n
            if self._bar is not None and self._task is not None:
                self._bar.update(self._task, total=self.total)

    def log(self) -> None:
        """Write one line on how far the work is."""
        self._logged, self.logged = (now := time.monotonic()), self.done
        rate = self.done / max(now - self._start, 1e-9)
        of, left = "", ""
        if self.total:
            of = f" of {self.total:,}"
            left = f", {max(self.total - self.done, 0) / rate:,.0f} s left" if self.done else ""
        note = f", {said}" if (said := self._note()) else ""
        logger.info(f"{self.what}: {self.done:,}{of}, {rate:,.1f}/s{left}{note}")


@contextmanager
def progress(what: str, total: int | None = None, note: Callable[[], str] | None = None) -> Iterator[Progress]:
    """Show the progress of `what` on standard error; `total` None means unknown, `note` gives words to add."""
    if not sys.stderr.isatty():
        plain = Progress(what, total, None, note)
        yield plain
        if plain.done != plain.logged:
            plain.log()
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
        yield Progress(what, total, bar, note)
