"""One request at a time to each host, with a pause between two, and what a run may spend."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ml_filter.downstream.fetching.config import FetchBudgetConfig
from ml_filter.downstream.fetching.items import BudgetSpent

_ONE_PLACE = {"export.arxiv.org": "arxiv.org", "www.arxiv.org": "arxiv.org"}
"""Hosts that count as one: the terms of arXiv allow one connection to all of its machines."""


class Meter:
    """What the run has spent of its budget. Its clock starts now."""

    def __init__(self, budget: FetchBudgetConfig) -> None:
        self._budget = budget
        self._start = time.monotonic()
        self.requests = self.bytes = self.documents = 0

    @property
    def seconds(self) -> float:
        """Time since the start."""
        return time.monotonic() - self._start

    @property
    def seconds_left(self) -> float:
        """Time until the budget is spent; infinite without a limit."""
        return float("inf") if self._budget.seconds is None else self._budget.seconds - self.seconds

    def check(self) -> None:
        """Raise BudgetSpent if nothing more may be requested."""
        for name in FetchBudgetConfig.model_fields:
            limit = getattr(self._budget, name)
            if limit is not None and getattr(self, name) >= limit:
                raise BudgetSpent(f"{name} {limit:,}")


class Gate:
    """The turns of one host."""

    def __init__(self, meter: Meter, slots: asyncio.Semaphore) -> None:
        self._meter, self._slots = meter, slots
        self._lock = asyncio.Lock()
        self._free_at = 0.0

    @asynccontextmanager
    async def turn(self, delay_s: float) -> AsyncIterator[None]:
        """Wait for the host, then hold it; the next turn begins `delay_s` seconds after this one ends, or later.

        Raises:
            BudgetSpent: nothing more may be requested.
        """
        async with self._lock:
            wait = self._free_at - time.monotonic()
            if wait > self._meter.seconds_left:
                raise BudgetSpent("seconds, while waiting for a host")
            if wait > 0:
                await asyncio.sleep(wait)
            async with self._slots:
                self._meter.check()
                try:
                    yield
                finally:
                    self.pause(delay_s)

    def pause(self, seconds: float) -> None:
        """Let nobody ask the host for this time."""
        self._free_at = max(self._free_at, time.monotonic() + seconds)


class Gates:
    """The gate of each host."""

    def __init__(self, meter: Meter, concurrency: int) -> None:
        self._meter, self._slots = meter, asyncio.Semaphore(concurrency)
        self._gates: dict[str, Gate] = {}

    def of(self, host: str) -> Gate:
        """The gate of a host, with its port if it is not the usual one."""
        name = _ONE_PLACE.get(host, host)
        return self._gates.setdefault(name, Gate(self._meter, self._slots))
