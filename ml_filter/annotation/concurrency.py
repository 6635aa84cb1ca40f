"""How many requests an endpoint gets at once, found by measuring, without knowing anything about the server."""

from __future__ import annotations

import math
from typing import NamedTuple

_START = 8
_IDLE = 8
"""The first requests, among at most this many in flight, measure the latency of an idle server."""
_MIN_RESULTS = 20
"""Fewest results for a rate; a whole window (`_size`) if that is more."""
_MIN_WATCH = 100
"""Fewest requests over which time-outs and rate limits are counted, so that one of a few is not yet a share."""
_USABLE_TIMEOUT = 1 / 3
"""Share of the time-out within which an answer is expected; latencies vary."""


class _Measured(NamedTuple):
    limit: int
    rate: float
    """Answers per second."""


class AdaptiveLimit:
    """How many requests may be in flight: about the fewest with which throughput is highest.

    More requests than the server works on at once only wait in its queue, where they run into the time-out and have to
    be paid for again. So the limit climbs to the knee of the throughput curve and stays near it:

    1. Slow start, as in TCP (RFC 5681). The limit grows two- to fourfold per round trip until a round trip adds less
       than 10% throughput.
    2. Landing. The limit drops to 1.5 times the requests that the server was working on (Little's law: rate times
       latency of the idle server) or, since a server that batches slows down without a queue, to the geometric mean
       of that and the limit before.
    3. Climbing. Steps of 10%, longer ones while they pay: a step up must add a fifth of its size in throughput, a step
       down must cost less than a tenth of it.

    Two brakes: the limit stays where an answer would take a third of the time-out at the measured rate (or 1.5 times
    the latency of the idle server). It falls by 30% at over 2% rate limits, at over 50% time-outs, and at over 10%
    time-outs if throughput drops as well. (Behaviour: tests/annotation/test_concurrency.py.)

    Args:
        maximum: upper bound of the limit.
        timeout_s: time-out of a request.
        now: seconds of a monotonic clock, here and below.
    """

    def __init__(self, maximum: int, timeout_s: float, now: float) -> None:
        self.maximum, self.timeout_s = maximum, timeout_s
        self.value = min(maximum, _START)
        self._starting, self._doubting = True, False
        self._idle, self._idle_s = 0, 0.0
        self._rate: float | None = None  # answers per second at this limit, once measured
        self._before: _Measured | None = None  # slow start: the last window; then: before the current step
        self._step = 0.1
        self._rest = self._patience = 1
        self._peak = 0  # most in flight in this window; below the limit, something else is the bottleneck
        self._answers = self._results = 0
        self._start_window(now)
        self._watch()

    def answered(self, now: float, in_flight: int, latency_s: float, sent_among: int) -> None:
        """Count an answer. `in_flight` (now) and `sent_among` (when it was sent) include its own request."""
        if sent_among <= _IDLE and self._idle < _IDLE:
            self._idle, self._idle_s = self._idle + 1, self._idle_s + latency_s
        self._answers += 1
        self._peak = max(self._peak, in_flight)
        if self._starting and not self._doubting and self._peak >= self._size:
            # Answers as fast as those of an idle server: nothing queues yet, so grow by three, otherwise by one.
            grown = self.value + (3 if latency_s < 2 * self._idle_latency() else 1)
            rate = sent_among / max(latency_s, 1e-6)  # Little's law for a single answer
            self.value = max(self.value, min(grown, self._most(rate)))
        self._count(now)

    def pressed(self, now: float, in_flight: int, *, rate_limited: bool) -> None:
        """Count a rate limit or a time-out. `in_flight` includes its own request."""
        if self._watched >= 0:  # negative: requests from before the last change, which it could not have helped
            self._rate_limits += rate_limited
            self._timeouts += not rate_limited
        watch = max(self._size, _MIN_WATCH)
        if self._rate_limits > max(3, 0.02 * watch) or self._timeouts > 0.5 * watch:
            self._starting, self._before, self._step, self._rest, self._patience = False, None, 0.1, 2, 2
            self._set(now, int(min(self.value, in_flight) * 0.7), skip=in_flight)
            self._watch(skip=in_flight)
        elif self._timeouts > 0.1 * watch and self._rate is not None and (self._starting or not self._goes_down()):
            # Time-outs may be the price of the best throughput, so a step down is tried and kept only if it pays.
            before = None if self._starting else self._before
            self._starting = False
            self._try(now, -0.3, before or _Measured(self.value, self._rate))
        else:
            self._count(now)

    def _goes_down(self) -> bool:
        return self._before is not None and self._step < 0

    def _watch(self, skip: int = 0) -> None:
        """Restart the counts of time-outs and rate limits, without the `skip` requests in flight at a change."""
        self._watched = -skip
        self._rate_limits = self._timeouts = 0

    def _start_window(self, now: float, skip: int = 0) -> None:
        """Measure a new window, without the `skip` requests that were sent under the limit before."""
        self._since, self._size, self._skip = now, self.value, skip
        self._answers = self._results = self._peak = 0

    def _set(self, now: float, limit: int, skip: int) -> None:
        self.value = max(1, min(limit, self.maximum))
        self._start_window(now, skip)

    def _idle_latency(self) -> float:
        return self._idle_s / self._idle if self._idle else math.inf

    def _most(self, rate: float) -> int:
        """Most requests that are answered well before the time-out at `rate` answers per second."""
        within_s = self.timeout_s * _USABLE_TIMEOUT
        if self._idle:
            within_s = max(within_s, 1.5 * self._idle_latency())
        return max(1, int(min(self.maximum, rate * within_s)))

    def _count(self, now: float) -> None:
        self._watched += 1
        if self._watched >= max(self._size, _MIN_WATCH):
            self._watch()
        if self._skip:
            self._start_window(now, self._skip - 1)
            return
        self._results += 1
        trips = 1 if self._starting else 2
        if self._results >= max(trips * self._size, _MIN_RESULTS) and now > self._since:
            self._rate = self._answers / (now - self._since)
            if self._starting:
                self._grow_or_land(now, self._rate)
            else:
                self._climb(now, self._rate)

    def _grow_or_land(self, now: float, rate: float) -> None:
        before = self._before
        if self._peak < self._size:  # too few requests were waiting to fill the limit, so the rate says nothing
            self._start_window(now)
        elif before is None or rate >= 1.1 * before.rate:
            self._doubting, self._before = False, _Measured(self._size, rate)
            self.value = max(self.value, min(2 * self._size, self._most(rate)))
            if self.value <= self._size:
                self._starting, self._before = False, None
                self._rest = self._patience = (
                    16  # the limit is held by the brake, not by the server: a step down would only cost
                )
            self._start_window(now)
        elif not self._doubting:  # a pause of the server or of this process looks the same, so measure a second window
            self._doubting = True
            self._start_window(now)
        else:
            self._starting, self._before = False, None
            rate = max(rate, before.rate)
            needed = 1.5 * rate * self._idle_latency() if self._idle else before.limit
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
