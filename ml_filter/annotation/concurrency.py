"""How many requests an endpoint gets at once: found out from its answers, with nothing known of the server before."""

from __future__ import annotations

import math
from typing import NamedTuple

_START = 8
_ALONE = 8
"""The first requests, sent among at most so many, show the latency of a server that is not busy."""
_LEAST = 20
"""Results that are the least to tell a rate by; more where more are in flight."""
_WATCH = 100
"""Requests among which time-outs and rate limits are counted, so that one of few is no share; more as above."""
_IN_TIME = 1 / 3
"""Share of the time-out within which an answer is expected, as latencies vary."""


class _Measured(NamedTuple):
    limit: int
    rate: float
    """Answers a second."""


class AdaptiveLimit:
    """How many requests may be in flight: as many as raise the throughput, and not many more.

    Slow start: each answer that took less than twice as long as those of the server alone makes room for three more
    requests, any other for one, so the limit grows two- to fourfold with each round trip, until a round trip brings
    less than 10% more answers a second. Then it goes back to half as many again as were being worked on (Little's
    law: rate x latency of the server alone), or to the geometric mean of that and of the limit before, as a server
    that batches gets slower without anything waiting. From there it tries steps of 10% and, while they pay, longer
    ones: up if that brings a fifth of the step in answers a second, down if it costs less than a tenth of it.

    It does not grow where, at the rate measured, an answer would take more than a third of the time-out (or 1.5 times
    what a server alone takes): a time-out loses work that may have to be paid. Over 2% of rate limits lower it by 30%
    (fewer may have nothing to do with the load), and so do over 50% of time-outs, or over 10% unless fewer are
    answered then. (Slow start and decrease are TCP's, RFC 5681. Behaviour: tests/annotation/test_concurrency.py.)

    Args:
        maximum: never more than these.
        timeout_s: of one request.
        now: seconds on any clock that does not go back, here and below.
    """

    def __init__(self, maximum: int, timeout_s: float, now: float) -> None:
        self.maximum, self.timeout_s = maximum, timeout_s
        self.value = min(maximum, _START)
        self._starting, self._doubting = True, False
        self._alone, self._alone_s = 0, 0.0
        self._rate: float | None = None  # answers a second at this limit, once measured
        self._before: _Measured | None = None  # the last one that paid; after the start: before the step being tried
        self._step = 0.1
        self._rest = self._patience = 1
        self._peak = 0  # most in flight in a window; below the limit, something else holds the throughput down
        self._answers = self._results = 0
        self._start_window(now)
        self._watch()

    def answered(self, now: float, in_flight: int, latency_s: float, sent_among: int) -> None:
        """Count an answer; `in_flight` (now) and `sent_among` (when it was sent) include its request."""
        if sent_among <= _ALONE and self._alone < _ALONE:
            self._alone, self._alone_s = self._alone + 1, self._alone_s + latency_s
        self._answers += 1
        self._peak = max(self._peak, in_flight)
        if self._starting and not self._doubting and self._peak >= self._size:
            grown = self.value + (3 if latency_s < 2 * self._latency_alone() else 1)
            rate = sent_among / max(latency_s, 1e-6)  # Little's law, of a single answer
            self.value = max(self.value, min(grown, self._most(rate)))
        self._count(now)

    def pressed(self, now: float, in_flight: int, *, rate_limited: bool) -> None:
        """Count a rate limit or a time-out; `in_flight` includes its request."""
        if self._watched >= 0:
            self._rate_limits += rate_limited
            self._timeouts += not rate_limited
        watch = max(self._size, _WATCH)
        if self._rate_limits > max(3, 0.02 * watch) or self._timeouts > 0.5 * watch:
            self._starting, self._before, self._step, self._rest, self._patience = False, None, 0.1, 2, 2
            self._set(now, int(min(self.value, in_flight) * 0.7), skip=in_flight)
            self._watch(skip=in_flight)
        elif self._timeouts > 0.1 * watch and self._rate is not None and (self._starting or not self._goes_down()):
            before = None if self._starting else self._before
            self._starting = False
            self._try(now, -0.3, before or _Measured(self.value, self._rate))
        else:
            self._count(now)

    def _goes_down(self) -> bool:
        return self._before is not None and self._step < 0

    def _watch(self, skip: int = 0) -> None:
        """Count time-outs and rate limits anew, without the requests that a change found on their way."""
        self._watched = -skip
        self._rate_limits = self._timeouts = 0

    def _start_window(self, now: float, skip: int = 0) -> None:
        self._since, self._size, self._skip = now, self.value, skip
        self._answers = self._results = self._peak = 0

    def _set(self, now: float, limit: int, skip: int) -> None:
        self.value = max(1, min(limit, self.maximum))
        self._start_window(now, skip)

    def _latency_alone(self) -> float:
        return self._alone_s / self._alone if self._alone else math.inf

    def _most(self, rate: float) -> int:
        """As many as are answered well before the time-out, at so many answers a second."""
        within_s = self.timeout_s * _IN_TIME
        if self._alone:
            within_s = max(within_s, 1.5 * self._latency_alone())
        return max(1, int(min(self.maximum, rate * within_s)))

    def _count(self, now: float) -> None:
        self._watched += 1
        if self._watched >= max(self._size, _WATCH):
            self._watch()
        if self._skip:
            self._start_window(now, self._skip - 1)
            return
        self._results += 1
        trips = 1 if self._starting else 2
        if self._results >= max(trips * self._size, _LEAST) and now > self._since:
            self._rate = self._answers / (now - self._since)
            if self._starting:
                self._go_on_or_land(now, self._rate)
            else:
                self._climb(now, self._rate)

    def _go_on_or_land(self, now: float, rate: float) -> None:
        before = self._before
        if self._peak < self._size:
            self._start_window(now)
        elif before is None or rate >= 1.1 * before.rate:
            self._doubting, self._before = False, _Measured(self._size, rate)
            self.value = max(self.value, min(2 * self._size, self._most(rate)))
            if self.value <= self._size:
                self._starting, self._before = False, None
                self._rest = self._patience = 16  # nothing waits, so a step down would only cost
            self._start_window(now)
        elif not self._doubting:  # a pause of either side looks the same; a second window decides
            self._doubting = True
            self._start_window(now)
        else:
            self._starting, self._before = False, None
            rate = max(rate, before.rate)
            needed = 1.5 * rate * self._latency_alone() if self._alone else before.limit
            needed = max(needed, math.sqrt(needed * before.limit))
            self._set(now, min(self.value, int(needed), self._most(rate)), skip=self.value)

    def _climb(self, now: float, rate: float) -> None:
        is_full = self._peak >= self.value
        if self._before:
            before, self._before = self._before, None
            least = before.rate * (1 + self._step * (0.2 if self._step > 0 else 0.1))
            if rate < least or (self._step > 0 and not is_full):
                self._rate = None
                self._step = 0.1 if self._step < 0 else -0.1
                self._patience = self._rest = min(2 * self._patience, 16)
                self._set(now, before.limit, skip=before.limit)
                return
            self._step = max(-0.4, min(0.4, 2 * self._step))
            self._patience, self._rest = 1, 0
        if self._rest:
            self._rest -= 1
        elif self.value >= self._most(rate) if self._step > 0 else self.value == 1:
            self._step = 0.1 if self._step < 0 else -0.1
        elif is_full:
            self._try(now, self._step, _Measured(self.value, rate))
            return
        self._start_window(now)

    def _try(self, now: float, step: float, before: _Measured) -> None:
        self._step, self._before = step, before
        change = round(before.limit * step) or (1 if step > 0 else -1)
        skip = max(before.limit + change, before.limit)
        self._set(now, before.limit + change, skip)
        self._watch(skip)
