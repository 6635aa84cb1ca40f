"""Several endpoints behind one door: a concurrency limit that adapts, a circuit breaker each, retries and failover."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from loguru import logger
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, wait_exponential_jitter

from ml_filter.annotation.client import Client, Endpoint, RequestFailed
from ml_filter.errors import EndpointError

_START = 32
_OPEN_AFTER = 5
_OPEN_AFTER_S = 2.0
_COOL_DOWN_S = (1.0, 30.0)
_FIRST_ANSWER_WITHIN_S = 30.0
_EXCUSED = 0.1
_BACKOFF = wait_exponential_jitter(multiplier=0.5, max=30.0, jitter=1.0)


class AdaptiveLimit:
    """How many requests may be in flight: doubles while that raises throughput, then tries small steps up.

    A window is as many answers as the limit. A step up that brings under 2% more answers a second is taken back.
    Over 1% of rate limits or 10% of time-outs in a window lower the limit by 30%. (Slow start and decrease are
    TCP's, RFC 5681; steps that must pay are a hill climb.)
    """

    def __init__(self, maximum: int, now: float) -> None:
        self.maximum = maximum
        self.value = min(maximum, _START)
        self._doubling = True
        self._rest = 0
        self._before: tuple[int, float] | None = None
        self._start_window(now)

    def _start_window(self, now: float) -> None:
        self._since, self._size = now, self.value
        self._answers = self._rate_limits = self._timeouts = 0

    def answered(self, now: float, in_flight: int) -> None:
        """Count an answer; `in_flight` includes its request."""
        self._answers += 1
        if self._doubling and in_flight >= self.value:
            self.value = min(self.value + 1, self.maximum)
        self._end_window(now)

    def pressed(self, now: float, *, rate_limited: bool) -> None:
        """Count a rate limit or a time-out."""
        self._rate_limits += rate_limited
        self._timeouts += not rate_limited
        self._end_window(now)

    def _end_window(self, now: float) -> None:
        total = self._answers + self._rate_limits + self._timeouts
        if total < self._size or now <= self._since:
            return
        rate = self._answers / (now - self._since)
        if self._rate_limits > 0.01 * total or self._timeouts > 0.1 * total:
            self.value = max(1, int(min(self.value, self._size) * 0.7))
            self._doubling, self._before, self._rest = False, None, 4
        elif self._doubling:
            if self._before and rate < 1.1 * self._before[1] and self._size > self._before[0]:
                self._doubling, self.value = False, self._size
            self._before = (self._size, rate) if self._doubling else None
        elif self._before:
            if rate < 1.02 * self._before[1]:
                self.value, self._rest = self._before[0], 8
            self._before = None
        elif self._rest:
            self._rest -= 1
        elif self.value < self.maximum:
            self._before = (self.value, rate)
            self.value = min(self.maximum, self.value + max(1, self.value // 10))
        self._start_window(now)


class Circuit:
    """Keeps requests off an endpoint that has stopped answering; lets one through now and then to see.

    Opens after 5 failures in a row if the last answer is 2 s old. One request is let through after 1 s, 2 s, 4 s, ...
    30 s; when it is answered, the circuit is closed.
    """

    def __init__(self, now: float) -> None:
        self.last_answer = now
        self.opened: float | None = None
        self.ready_at = 0.0
        self._failures = 0
        self._cool_down = _COOL_DOWN_S[0]
        self._probing = False

    def lets_through(self, now: float) -> bool:
        """Whether a request may be sent now."""
        return self.opened is None or (now >= self.ready_at and not self._probing)

    def sent(self) -> None:
        """A request is on its way; while the circuit is open it is the only one."""
        self._probing = self.opened is not None

    def answered(self, now: float) -> None:
        """The endpoint answered, be it with a refusal."""
        self.last_answer = now
        self.opened, self._failures, self._cool_down, self._probing = None, 0, _COOL_DOWN_S[0], False

    def failed(self, now: float) -> bool:
        """The endpoint did not answer; whether the circuit has just opened."""
        self._failures += 1
        if self.opened is not None:
            if self._probing:
                self._probing = False
                self._cool_down = min(2 * self._cool_down, _COOL_DOWN_S[1])
                self.ready_at = now + self._cool_down
            return False
        if self._failures < _OPEN_AFTER or now - self.last_answer < _OPEN_AFTER_S:
            return False
        self.opened, self.ready_at = now, now + self._cool_down
        return True


class _State:
    """An endpoint and how it is doing."""

    def __init__(self, endpoint: Endpoint, maximum: int, now: float) -> None:
        self.endpoint = endpoint
        most = min(maximum, endpoint.max_concurrency or maximum)
        self.limit, self.circuit = AdaptiveLimit(most, now), Circuit(now)
        self.in_flight = 0
        self.paused_until = 0.0
        self.has_answered = False

    def has_room(self, now: float) -> bool:
        return self.in_flight < self.limit.value and now >= self.paused_until and self.circuit.lets_through(now)

    def load(self) -> float:
        return self.in_flight / self.limit.value


T = TypeVar("T")


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

    async def __aenter__(self) -> EndpointPool:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.close()

    @property
    def endpoints(self) -> list[Endpoint]:
        """The endpoints, in the order given."""
        return [state.endpoint for state in self._states]

    async def post(
        self, path: str, body_for: Callable[[Endpoint], dict[str, Any]], read: Callable[[dict[str, Any]], T]
    ) -> Response[T]:
        """The answer to a request, after as many tries as it may take.

        Args:
            path: of the API, such as `chat/completions`.
            body_for: the request's body for an endpoint.
            read: makes the answer of a response's JSON; raises LookupError, TypeError, ValueError or AttributeError
                where it is not formed like one, which is tried again.

        Raises:
            RequestFailed: no usable answer after all tries; `attempts` is set to their number.
            EndpointError: no request can succeed, or no endpoint has answered for `max_outage_s`.
        """
        attempts, spent = 0, 0.0

        def stop(_: RetryCallState) -> bool:
            return spent > self.max_retries

        async def once() -> Response[T]:
            nonlocal attempts, spent
            state = await self._room()
            attempts += 1
            start = time.monotonic()
            try:
                endpoint = state.endpoint
                payload = await self.client.post(endpoint, endpoint.url(path), body_for(endpoint))
                answer = _read(read, payload)
            except RequestFailed as error:
                spent += _EXCUSED if self._failed(state, error) else 1.0
                error.attempts = attempts
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

    async def _room(self) -> _State:
        while True:
            now = time.monotonic()
            free = [state for state in self._states if state.has_room(now)]
            if free:
                state = min(free, key=_State.load)
                state.in_flight += 1
                state.circuit.sent()
                return state
            self._check_outage(now)
            waiter = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            await waiter

    def _wake(self) -> None:
        now = time.monotonic()
        room = sum(max(s.limit.value - s.in_flight, 0) for s in self._states if s.has_room(now))
        while room > 0 and self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                room -= 1

    def _wake_at(self, when: float) -> None:
        delay = max(when - time.monotonic(), 0.0) + 0.001
        asyncio.get_running_loop().call_later(delay, self._wake)

    def _answered(self, state: _State, now: float) -> None:
        if state.circuit.opened is not None:
            logger.info(f"{state.endpoint.base_url} answers again")
        state.has_answered = True
        state.circuit.answered(now)
        state.limit.answered(now, state.in_flight)

    def _failed(self, state: _State, error: RequestFailed) -> bool:
        """Note a failure; whether it tells of the endpoint and not of the request."""
        now = time.monotonic()
        if error.refused:
            self._answered(state, now)
            return False
        self._last_error = f"{error.code}: {error}"
        if error.code in ("rate_limited", "timeout"):
            state.limit.pressed(now, rate_limited=error.code == "rate_limited")
        if error.retry_after_s:
            state.paused_until = max(state.paused_until, now + error.retry_after_s)
            self._wake_at(state.paused_until)
        if error.code == "malformed_answer":
            state.circuit.answered(now)
            return False
        if state.circuit.failed(now):
            logger.warning(f"{state.endpoint.base_url} does not answer ({self._last_error}); waiting for it")
        if state.circuit.opened is not None:
            self._wake_at(state.circuit.ready_at)
        return error.code == "rate_limited" or state.circuit.opened is not None

    def _check_outage(self, now: float) -> None:
        if any(state.circuit.opened is None for state in self._states):
            return
        known = any(state.has_answered for state in self._states)
        patience = self.max_outage_s if known else min(self.max_outage_s, _FIRST_ANSWER_WITHIN_S)
        silent_s = now - max(state.circuit.last_answer for state in self._states)
        if silent_s >= patience:
            urls = ", ".join(endpoint.base_url for endpoint in self.endpoints)
            raise EndpointError(
                f"{urls} has not answered for {silent_s:.0f} s (last: {self._last_error}). Finished answers are kept; "
                "run the same command again when it is back, or check --endpoint (ML_FILTER_ENDPOINT)"
            )


def _may_pass(error: BaseException) -> bool:
    return isinstance(error, RequestFailed) and not error.refused


def _read(read: Callable[[dict[str, Any]], T], payload: dict[str, Any]) -> T:
    try:
        return read(payload)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise RequestFailed("malformed_answer", f"{type(error).__name__}: {error}") from error
