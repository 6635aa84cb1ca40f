"""Several endpoints behind one door: a concurrency limit that adapts, a circuit breaker each, retries and failover."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Generic, TypeVar

from loguru import logger
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, wait_exponential_jitter

from ml_filter.annotation.budget import Spending
from ml_filter.annotation.client import Client, Endpoint, RequestFailed, reported_usage
from ml_filter.errors import EndpointError

_START = 32
_LEAST = 20
"""Requests whose outcome is the least to tell a rate by; more where more are in flight."""
_WATCH = 100
"""Requests among which time-outs and rate limits are counted, so that one of few is no share; more as above."""
_OPEN_AFTER = 5
_OPEN_AFTER_S = 2.0
_COOL_DOWN_S = (1.0, 30.0)
_PING: dict[str, dict[str, Any]] = {
    "chat/completions": {"messages": [{"role": "user", "content": "1"}]},
    "completions": {"prompt": "1"},
}
_FIRST_ANSWER_WITHIN_S = 30.0
_EXCUSED = 0.1
_BACKOFF = wait_exponential_jitter(multiplier=0.5, max=30.0, jitter=1.0)


class AdaptiveLimit:
    """How many requests may be in flight: as many as raise the throughput, and not many more.

    It doubles with each round trip while that brings 10% more answers a second. Then Little's law (in flight = rate x
    latency, with the lowest latency seen) says about how many the server takes, and from there it tries steps of 10%
    and, while they pay, longer ones: up if that brings a fifth of the step in answers a second, down if it costs less
    than a tenth of it. Over 1% of rate limits lower it by 30%; over 10% of time-outs do as well, unless fewer are
    answered then. (Slow start and decrease are TCP's, RFC 5681. Figures: tests/annotation/test_endpoints.py.)
    """

    def __init__(self, maximum: int, now: float) -> None:
        self.maximum = maximum
        self.value = min(maximum, _START)
        self._doubling, self._doubting = True, False
        self._latency = math.inf
        self._rate: float | None = None  # answers a second at this limit, once measured
        self._before: tuple[int, float] | None = None  # limit and rate before the step that is being tried
        self._step = 0.1
        self._rest = self._patience = 1
        self._peak = 0  # most in flight in a window; below the limit, something else holds the throughput down
        self._start_window(now)
        self._watch()

    def answered(self, now: float, in_flight: int) -> None:
        """Count an answer; `in_flight` includes its request."""
        self._answers += 1
        self._peak = max(self._peak, in_flight)
        if self._doubling and self._peak >= self._size:
            self.value = min(self.value + 1, self.maximum)
        self._count(now)

    def pressed(self, now: float, in_flight: int, *, rate_limited: bool) -> None:
        """Count a rate limit or a time-out; `in_flight` includes its request."""
        if self._watched >= 0:
            self._rate_limits += rate_limited
            self._timeouts += not rate_limited
        watch = max(self._size, _WATCH)
        if self._rate_limits > 0.01 * watch:
            self.value = max(1, int(min(self.value, in_flight) * 0.7))
            self._doubling, self._before, self._step, self._rest, self._patience = False, None, 0.1, 2, 2
            self._start_window(now, skip=in_flight)
            self._watch(skip=in_flight)
        elif self._timeouts > 0.1 * watch and self._rate is not None and (self._doubling or not self._goes_down()):
            before = (self.value, self._rate) if self._doubling or self._before is None else self._before
            self._doubling = False
            self._try(now, -0.3, before)
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

    def _count(self, now: float) -> None:
        self._watched += 1
        if self._watched >= max(self._size, _WATCH):
            self._watch()
        if self._skip:
            self._start_window(now, self._skip - 1)
            return
        self._results += 1
        trips = 1 if self._doubling else max(2, math.ceil(_LEAST / self._size))
        if self._results >= trips * self._size and now > self._since:
            self._rate = self._answers / (now - self._since)
            if self._doubling:
                self._double(now, self._rate)
            else:
                self._climb(now, self._rate)

    def _double(self, now: float, rate: float) -> None:
        if rate > 0:
            self._latency = min(self._latency, self._size / rate)
        if self._before is None or self._size <= self._before[0] or rate >= 1.1 * self._before[1]:
            self._doubting = False
            self._before = (self._size, rate)
            self._start_window(now)
        elif not self._doubting:  # a pause of either side looks the same; a second window decides
            self._doubting = True
            self._start_window(now)
        else:
            best = max(rate, self._before[1])
            self._doubling, self._before = False, None
            self.value = min(self.value, max(1, int(1.25 * best * self._latency))) if best > 0 else self.value
            self._start_window(now, skip=2 * self._size)

    def _climb(self, now: float, rate: float) -> None:
        is_full = self._peak >= self.value
        if self._before:
            value, before = self._before
            self._before = None
            if rate < before * (1 + self._step * (0.2 if self._step > 0 else 0.1)) or (self._step > 0 and not is_full):
                self.value, self._rate = value, None
                self._step = 0.1 if self._step < 0 else -0.1
                self._patience = self._rest = min(2 * self._patience, 16)
                self._start_window(now, skip=value)
                return
            self._step = max(-0.4, min(0.4, 2 * self._step))
            self._patience, self._rest = 1, 0
        if self._rest:
            self._rest -= 1
        elif self.value == (self.maximum if self._step > 0 else 1):
            self._step = 0.1 if self._step < 0 else -0.1
        elif is_full:
            self._try(now, self._step, (self.value, rate))
            return
        self._start_window(now)

    def _try(self, now: float, step: float, before: tuple[int, float]) -> None:
        self._step, self._before = step, before
        change = round(before[0] * step) or (1 if step > 0 else -1)
        self.value = min(max(before[0] + change, 1), self.maximum)
        skip = max(self.value, before[0])
        self._start_window(now, skip)
        self._watch(skip)


class Circuit:
    """Keeps requests off an endpoint that has stopped answering: after 5 failures in a row, the last answer being 2 s
    old, until it answers."""

    def __init__(self, now: float) -> None:
        self.last_answer = now
        self.is_open = False
        self._failures = 0

    def answered(self, now: float) -> None:
        """The endpoint answered, be it with a refusal."""
        self.last_answer, self.is_open, self._failures = now, False, 0

    def failed(self, now: float) -> bool:
        """The endpoint did not answer; whether the circuit has just opened."""
        self._failures += 1
        if self.is_open or self._failures < _OPEN_AFTER or now - self.last_answer < _OPEN_AFTER_S:
            return False
        self.is_open = True
        return True


class _State:
    """An endpoint and how it is doing."""

    def __init__(self, endpoint: Endpoint, maximum: int, now: float) -> None:
        self.endpoint = endpoint
        self.most = min(maximum, endpoint.max_concurrency or maximum)
        self.limit, self.circuit = AdaptiveLimit(self.most, now), Circuit(now)
        self.in_flight = 0
        self.is_out = False
        self.paused_until = 0.0
        self.has_answered = False
        self.revival: asyncio.Task[None] | None = None

    def has_room(self, now: float) -> bool:
        is_up = not (self.is_out or self.circuit.is_open)
        return is_up and self.in_flight < self.limit.value and now >= self.paused_until

    def load(self) -> float:
        return self.in_flight / self.limit.value


T = TypeVar("T")


class _TakenOut(Exception):
    """The endpoint is not asked any more; the request goes to another."""


@dataclass(frozen=True)
class Response(Generic[T]):
    """An answer, how many requests it took, and the seconds the last of them took."""

    answer: T
    attempts: int
    latency_s: float


class EndpointPool:
    """Sends each request to the least loaded endpoint that answers; a retry may go to another one.

    Args:
        endpoints: all serve the same model.
        max_concurrency: most requests in flight, over all endpoints.
        timeout_s: for one request.
        max_retries: tries after the first. A try that met a rate limit or an endpoint out of order counts a tenth.
        max_outage_s: how long to wait, once no endpoint answers any more, before giving up.
    """

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        *,
        max_concurrency: int,
        timeout_s: float,
        max_retries: int,
        max_outage_s: float,
    ) -> None:
        now = time.monotonic()
        self.max_retries, self.max_outage_s = max_retries, max_outage_s
        self.client = Client(timeout_s)
        self._states = [_State(endpoint, max_concurrency, now) for endpoint in endpoints]
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._last_error = ""
        self._unusable: EndpointError | None = None

    async def __aenter__(self) -> EndpointPool:
        return self

    async def __aexit__(self, *_: object) -> None:
        for state in self._states:
            if state.revival is not None:
                state.revival.cancel()
        await self.client.close()

    @property
    def endpoints(self) -> list[Endpoint]:
        """The endpoints, in the order given."""
        return [state.endpoint for state in self._states]

    async def post(
        self,
        path: str,
        body_for: Callable[[Endpoint], dict[str, Any]],
        read: Callable[[dict[str, Any]], T],
        spending: Spending | None = None,
    ) -> Response[T]:
        """The answer to a request, after as many tries as it may take.

        Args:
            path: of the API, such as `chat/completions`.
            body_for: the request's body for an endpoint.
            read: makes the answer of a response's JSON; raises LookupError, TypeError, ValueError or AttributeError
                where it is not formed like one, which is tried again.
            spending: hears of each failed try, and says whether the budget has room for one more.

        Raises:
            RequestFailed: no usable answer after all tries; `attempts` is set to their number.
            EndpointError: no request can succeed at any endpoint, or none has answered for `max_outage_s`.
        """
        attempts, spent = 0, 0.0
        failed_at: _State | None = None
        failure: RequestFailed | None = None

        def stop(_: RetryCallState) -> bool:
            return spent > self.max_retries

        async def once() -> Response[T]:
            nonlocal attempts, spent, failed_at, failure
            if failure and spending and not await spending.has_room():
                spent = math.inf
                raise failure
            state = await self._room(failed_at)
            attempts += 1
            start = time.monotonic()
            try:
                endpoint = state.endpoint
                payload = await self.client.post(endpoint, endpoint.url(path), body_for(endpoint))
                answer = _read(read, payload)
            except RequestFailed as error:
                excused = self._failed(state, error, path)
                # an empty answer costs like any other, and may well come again
                spent += (
                    _EXCUSED if excused else max(1.0, self.max_retries / 2) if error.code == "empty_answer" else 1.0
                )
                failed_at, failure = state, error
                error.attempts = attempts
                if spending:
                    spending.failed(error)
                raise
            except EndpointError as error:
                self._take_out(state, error)
                raise
            else:
                now = time.monotonic()
                self._answered(state, now)
                return Response(answer, attempts, now - start)
            finally:
                state.in_flight -= 1
                self._wake()

        retrying = AsyncRetrying(stop=stop, wait=_BACKOFF, retry=retry_if_exception(_may_pass), reraise=True)
        return await retrying(once)

    async def _room(self, failed_at: _State | None) -> _State:
        """The least loaded endpoint with room for a request, one that has not just failed it where there is one."""
        while True:
            now = time.monotonic()
            if self._unusable is not None:
                raise self._unusable
            free = [state for state in self._states if state.has_room(now)]
            if free:
                state = min(free, key=lambda state: (state is failed_at, state.load()))
                state.in_flight += 1
                return state
            self._check_outage(now)
            waiter = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            await waiter

    def _take_out(self, state: _State, error: EndpointError) -> None:
        """Ask an endpoint no more at which no request can succeed; raises where it is the last."""
        is_new, state.is_out = not state.is_out, True
        left = [other.endpoint.base_url for other in self._states if not other.is_out]
        if is_new and left:
            logger.warning(f"{error}. It is not asked any more; the run goes on with {', '.join(left)}")
        if not left:
            self._unusable = error
        self._wake(everyone=True)
        if left:
            raise _TakenOut from error

    def _wake(self, *, everyone: bool = False) -> None:
        now = time.monotonic()
        room = sum(max(s.limit.value - s.in_flight, 0) for s in self._states if s.has_room(now))
        if everyone:
            room = len(self._waiting)
        while room > 0 and self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                room -= 1

    def _answered(self, state: _State, now: float) -> None:
        if state.circuit.is_open:
            logger.info(f"{state.endpoint.base_url} answers again")
            state.limit = AdaptiveLimit(state.most, now)
        state.has_answered = True
        state.circuit.answered(now)
        state.limit.answered(now, state.in_flight)

    def _failed(self, state: _State, error: RequestFailed, path: str) -> bool:
        """Note a failure; whether it tells of the endpoint and not of the request."""
        now = time.monotonic()
        if error.refused:
            self._answered(state, now)
            return False
        self._last_error = f"{error.code}: {error}"
        if error.code in ("rate_limited", "timeout"):
            state.limit.pressed(now, state.in_flight, rate_limited=error.code == "rate_limited")
        if error.code == "rate_limited":
            state.has_answered = True
        if error.retry_after_s:
            pause = min(error.retry_after_s, self.max_outage_s)
            state.paused_until = max(state.paused_until, now + pause)
            asyncio.get_running_loop().call_later(pause + 0.001, self._wake)
        if error.code in ("malformed_answer", "empty_answer"):
            state.circuit.answered(now)
            return False
        if state.circuit.failed(now):
            logger.warning(f"{state.endpoint.base_url} does not answer ({self._last_error}); waiting for it")
            if state.revival is None or state.revival.done():
                state.revival = asyncio.create_task(self._revive(state, path))
        return error.code == "rate_limited" or state.circuit.is_open

    async def _revive(self, state: _State, path: str) -> None:
        """Ask an endpoint that has stopped answering for a word, after 1 s, 2 s, 4 s, ... 30 s, until it answers.

        A word and not a waiting request: a document that no server can answer must not pass for an outage.
        """
        endpoint, (least, most) = state.endpoint, _COOL_DOWN_S
        body = {"model": endpoint.model, "max_tokens": 1, **_PING[path]}
        for nth in count():
            await asyncio.sleep(max(min(least * 2.0 ** min(nth, 10), most), state.paused_until - time.monotonic()))
            if not state.circuit.is_open:
                return
            try:
                await self.client.post(endpoint, endpoint.url(path), body)
            except (RequestFailed, EndpointError) as error:
                if not (isinstance(error, RequestFailed) and error.refused):
                    self._last_error = f"{error.code}: {error}" if isinstance(error, RequestFailed) else str(error)
                    self._wake(everyone=True)  # to see whether the outage has become too long
                    continue
            self._answered(state, time.monotonic())
            self._wake()
            return

    def _check_outage(self, now: float) -> None:
        states = [state for state in self._states if not state.is_out]
        if not all(state.circuit.is_open for state in states):
            return
        known = any(state.has_answered for state in states)
        patience = self.max_outage_s if known else min(self.max_outage_s, _FIRST_ANSWER_WITHIN_S)
        silent_s = now - max(state.circuit.last_answer for state in states)
        if silent_s >= patience:
            urls = ", ".join(state.endpoint.base_url for state in states)
            raise EndpointError(
                f"{urls} has not answered for {silent_s:.0f} s (last: {self._last_error}). Finished answers are kept; "
                "run the same command again when it is back, or check --endpoint (ML_FILTER_ENDPOINT)"
            )


def _may_pass(error: BaseException) -> bool:
    return isinstance(error, _TakenOut) or (isinstance(error, RequestFailed) and not error.refused)


def _read(read: Callable[[dict[str, Any]], T], payload: dict[str, Any]) -> T:
    try:
        return read(payload)
    except RequestFailed as error:
        error.prompt_tokens, error.completion_tokens = reported_usage(payload)
        raise
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        failed = RequestFailed("malformed_answer", f"{type(error).__name__}: {error}", may_cost=True)
        failed.prompt_tokens, failed.completion_tokens = reported_usage(payload)
        raise failed from error
