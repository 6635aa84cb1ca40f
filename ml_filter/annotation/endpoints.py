"""A pool of endpoints that serve the same model: concurrency limits, circuit breakers, retries and failover."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count
from typing import Any

from loguru import logger

from ml_filter.annotation.budget import Spending
from ml_filter.annotation.client import Client, Endpoint
from ml_filter.annotation.concurrency import AdaptiveLimit
from ml_filter.annotation.config import AskConfig
from ml_filter.annotation.failures import FORBIDDEN, OUT_OF_CREDIT, RequestFailed
from ml_filter.annotation.responses import Answer
from ml_filter.errors import EndpointError, MlFilterError

_OPEN_AFTER = 5
_OPEN_AFTER_S = 2.0
_PING_AFTER_S = (1.0, 30.0)
"""Least and most seconds between two pings of an endpoint that has stopped answering."""
_PING: dict[str, dict[str, Any]] = {
    "chat/completions": {"messages": [{"role": "user", "content": "1"}]},
    "completions": {"prompt": "1"},
}
_FIRST_ANSWER_WITHIN_S = 30.0
_ANSWERED = ("malformed_answer", "empty_answer")
"""Failures that are paid for like answers and likely to repeat: at most two retries."""
_ENDPOINT_FAULT = 0.1
"""What a try counts if it failed because of the endpoint and not because of the request."""


class Circuit:
    """Circuit breaker of an endpoint. It opens, so that no requests are sent, with the fifth failure in a row if the
    last answer is at least 2 s old, and closes when the endpoint answers a ping."""

    def __init__(self, now: float) -> None:
        self.last_answer = now
        self.is_open = False
        self._failures = 0

    def answered(self, now: float) -> None:
        """Count an answer, which may also be a rejection."""
        self.last_answer, self.is_open, self._failures = now, False, 0

    def failed(self, now: float) -> bool:
        """Count a request without an answer; True if this opens the circuit."""
        self._failures += 1
        if self.is_open or self._failures < _OPEN_AFTER or now - self.last_answer < _OPEN_AFTER_S:
            return False
        self.is_open = True
        return True


class _State:
    """An endpoint and its current condition."""

    def __init__(self, endpoint: Endpoint, config: AskConfig, now: float) -> None:
        self.endpoint = endpoint
        maximum = min(config.max_concurrency, endpoint.max_concurrency or config.max_concurrency)
        self.limit, self.circuit = AdaptiveLimit(maximum, config.timeout_s, now), Circuit(now)
        self.in_flight = 0
        self.is_excluded = False
        self.paused_until = 0.0
        self.has_answered = False
        self.accepted_at = -math.inf  # when the last ping that it accepted was sent
        self.checking = asyncio.Lock()
        self.pinging: asyncio.Task[None] | None = None

    def takes_requests(self, now: float) -> bool:
        return not (self.is_excluded or self.circuit.is_open) and now >= self.paused_until

    def has_room(self, now: float) -> bool:
        return self.takes_requests(now) and self.in_flight < self.limit.value

    def load(self) -> float:
        return self.in_flight / self.limit.value


class EndpointPool:
    """Sends each request to the least loaded endpoint that works; a retry may go to another one.

    Requires a running event loop. The endpoints must serve the same model. `max_concurrency` bounds the requests in
    flight at each endpoint; the caller bounds their sum. Of `max_retries`, a rate limit or a broken endpoint uses only
    a tenth.
    """

    def __init__(self, endpoints: Sequence[Endpoint], config: AskConfig) -> None:
        now = time.monotonic()
        self.max_retries, self.max_outage_s = config.max_retries, config.max_outage_s
        self.client = Client(config.timeout_s)
        self._states = [_State(endpoint, config, now) for endpoint in endpoints]
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._last_error = ""
        self._unusable: MlFilterError | None = None

    async def __aenter__(self) -> EndpointPool:
        return self

    async def __aexit__(self, *_: object) -> None:
        for state in self._states:
            if state.pinging is not None:
                state.pinging.cancel()
        await self.client.close()

    @property
    def endpoints(self) -> list[Endpoint]:
        """The endpoints in the order of the configuration."""
        return [state.endpoint for state in self._states]

    @property
    def in_flight(self) -> int:
        """Number of requests in flight."""
        return sum(state.in_flight for state in self._states)

    async def post(
        self, path: str, body_for: Callable[[Endpoint], dict[str, Any]], spending: Spending | None = None
    ) -> Answer:
        """Send a request and retry it until it has an answer.

        Args:
            path: API path, such as `chat/completions`.
            body_for: returns the body of the request for an endpoint.
            spending: is charged for failed tries and decides whether the budget has room for another one.

        Raises:
            RequestFailed: no usable answer after all tries; `attempts` is their number.
            EndpointError: no request can succeed at any endpoint, or none has answered for `max_outage_s`.
        """
        attempts, spent = 0, 0.0  # requests made, and tries in the sense of `max_retries`
        failed_at: _State | None = None
        while True:
            state = await self._room(failed_at)
            attempts += 1
            start, sent_among = time.monotonic(), state.in_flight
            try:
                answer = await self.client.ask(state.endpoint, path, body_for(state.endpoint))
            except EndpointError as error:
                self._exclude(state, error)
                continue  # at another endpoint
            except RequestFailed as error:
                if await self._is_unusable(state, error, path):
                    self._exclude(state, state.endpoint.unusable(error))
                    continue
                if self._failed(state, error, path):
                    spent += _ENDPOINT_FAULT
                else:
                    spent += max(1.0, self.max_retries / 2) if error.code in _ANSWERED else 1.0
                error.attempts = attempts
                if spending:
                    spending.failed(error)
                if error.refused or spent > self.max_retries:
                    raise
                failed_at, failure = state, error
            else:
                now = time.monotonic()
                self._answered(state, now)
                state.limit.answered(now, state.in_flight, now - start, sent_among)
                return replace(answer, attempts=attempts, latency_s=now - start)
            finally:
                state.in_flight -= 1
                self._wake()
            await asyncio.sleep(_backoff_s(attempts))
            if spending and not await spending.has_room():
                raise failure

    async def _room(self, failed_at: _State | None) -> _State:
        """The least loaded endpoint with room for a request. Avoids the endpoint that has just failed the request, as
        long as another one works, even if it has to wait for room there."""
        while True:
            now = time.monotonic()
            if self._unusable is not None:
                raise self._unusable
            others = [state for state in self._states if state is not failed_at and state.takes_requests(now)]
            free = [state for state in others or self._states if state.has_room(now)]
            if free:
                state = min(free, key=_State.load)
                state.in_flight += 1
                return state
            self._check_outage(now)
            waiter = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            await waiter

    async def _is_unusable(self, state: _State, error: RequestFailed, path: str) -> bool:
        """Whether every request to the endpoint would fail like this one. After a 401, 403, 404, ... a ping tells a
        wrong key, model or path from a document that a firewall or a moderator rejects."""
        if error.code != FORBIDDEN:
            return error.code == OUT_OF_CREDIT
        failed_at = time.monotonic()
        async with state.checking:
            if state.is_excluded or state.accepted_at >= failed_at:
                return state.is_excluded
            pinged_at = time.monotonic()
            try:
                await self._ping(state.endpoint, path)
            except EndpointError:
                return True
            except RequestFailed as answer:
                if not answer.refused:  # down or busy, so that only its past can tell
                    return not state.has_answered
            state.accepted_at = pinged_at
            return False

    async def _ping(self, endpoint: Endpoint, path: str) -> None:
        body = {"model": endpoint.model, "max_tokens": 1, **_PING[path]}
        await self.client.post(endpoint, endpoint.url(path), body)

    def stop(self, error: MlFilterError) -> None:
        """Send no more requests: those that wait or would be retried raise the error."""
        self._unusable = self._unusable or error
        self._wake(everyone=True)

    def _exclude(self, state: _State, error: EndpointError) -> None:
        """Stop using an endpoint at which no request can succeed; fail all waiting requests if it is the last one."""
        is_new, state.is_excluded = not state.is_excluded, True
        left = [other.endpoint.base_url for other in self._states if not other.is_excluded]
        if is_new and left:
            logger.warning(f"{error}. The run continues without it, with {', '.join(left)}")
        self._wake(everyone=True)
        if not left:
            self.stop(error)
            raise error

    def _wake(self, *, everyone: bool = False) -> None:
        now = time.monotonic()
        free = sum(s.limit.value - s.in_flight for s in self._states if s.has_room(now))
        room = len(self._waiting) if everyone else free
        while room > 0 and self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                room -= 1

    def _answered(self, state: _State, now: float) -> None:
        if state.circuit.is_open:
            logger.info(f"{state.endpoint.base_url} answers again")
            state.limit = AdaptiveLimit(state.limit.maximum, state.limit.timeout_s, now)
        state.has_answered = True
        state.circuit.answered(now)

    def _failed(self, state: _State, error: RequestFailed, path: str) -> bool:
        """Record a failure; True if the endpoint is the cause and not the request."""
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
        if error.code in _ANSWERED:
            state.circuit.answered(now)
            return False
        if state.circuit.failed(now):
            logger.warning(f"{state.endpoint.base_url} does not answer ({self._last_error}); waiting for it")
            if state.pinging is None or state.pinging.done():
                state.pinging = asyncio.create_task(self._ping_until_answered(state, path))
        return error.code == "rate_limited" or state.circuit.is_open

    async def _ping_until_answered(self, state: _State, path: str) -> None:
        """Ping an endpoint that has stopped answering after 1 s, 2 s, 4 s, ... 30 s, until it answers.

        With a request of one token, not with a waiting one: a document that crashes the server must not look like an
        outage of the endpoint.
        """
        least, most = _PING_AFTER_S
        for nth in count():
            await asyncio.sleep(max(min(least * 2.0 ** min(nth, 10), most), state.paused_until - time.monotonic()))
            if not state.circuit.is_open:
                return
            try:
                await self._ping(state.endpoint, path)
            except (RequestFailed, EndpointError) as error:
                if not (isinstance(error, RequestFailed) and error.refused):
                    self._last_error = f"{error.code}: {error}" if isinstance(error, RequestFailed) else str(error)
                    self._wake(everyone=True)  # each waiting request checks whether the outage has become too long
                    continue
            self._answered(state, time.monotonic())
            self._wake()
            return

    def _check_outage(self, now: float) -> None:
        states = [state for state in self._states if not state.is_excluded]
        if not all(state.circuit.is_open for state in states):
            return
        silent_s = now - max(state.circuit.last_answer for state in states)
        if silent_s >= patience_s(self.max_outage_s, any(state.has_answered for state in states)):
            raise outage([state.endpoint for state in states], silent_s, self._last_error)


def patience_s(max_outage_s: float, has_answered: bool) -> float:
    """Seconds to wait for endpoints that do not answer; at most 30 if they have never answered."""
    return max_outage_s if has_answered else min(max_outage_s, _FIRST_ANSWER_WITHIN_S)


def outage(endpoints: Sequence[Endpoint], silent_s: float, last: str) -> EndpointError:
    """The error for endpoints that have been silent for too long; `last` is the outcome of the last request."""
    urls = ", ".join(endpoint.base_url for endpoint in endpoints)
    return EndpointError(
        f"{urls} has not answered for {silent_s:.0f} s (last error: {last}). Finished answers are kept; "
        f"run the same command again when it is available, or check --endpoint (ML_FILTER_ENDPOINT)"
        f"{endpoints[0].proxy_note}"
    )


def _backoff_s(attempts: int) -> float:
    """Seconds before the next try; random, so that requests that failed together do not return together."""
    return min(0.5 * 2.0 ** (min(attempts, 10) - 1) + random.random(), 30.0)  # noqa: S311
