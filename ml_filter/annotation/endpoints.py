"""Several endpoints behind one door: a concurrency limit and a circuit breaker each, retries and failover."""

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
from ml_filter.annotation.concurrency import AdaptiveLimit
from ml_filter.errors import EndpointError

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

    def __init__(self, endpoint: Endpoint, maximum: int, timeout_s: float, now: float) -> None:
        self.endpoint = endpoint
        most = min(maximum, endpoint.max_concurrency or maximum)
        self.limit, self.circuit = AdaptiveLimit(most, timeout_s, now), Circuit(now)
        self.in_flight = 0
        self.is_out = False
        self.paused_until = 0.0
        self.has_answered = False
        self.revival: asyncio.Task[None] | None = None

    def takes_requests(self, now: float) -> bool:
        return not (self.is_out or self.circuit.is_open) and now >= self.paused_until

    def has_room(self, now: float) -> bool:
        return self.takes_requests(now) and self.in_flight < self.limit.value

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
        self._states = [_State(endpoint, max_concurrency, timeout_s, now) for endpoint in endpoints]
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

    @property
    def in_flight(self) -> int:
        """Requests that are on their way."""
        return sum(state.in_flight for state in self._states)

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
            start, sent_among = time.monotonic(), state.in_flight
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
                state.limit.answered(now, state.in_flight, now - start, sent_among)
                return Response(answer, attempts, now - start)
            finally:
                state.in_flight -= 1
                self._wake()

        try:  # most requests need no second try, and tenacity costs half of what sending one does
            return await once()
        except (RequestFailed, _TakenOut) as error:
            first: list[Exception] = [error]

        async def again() -> Response[T]:
            if first:
                raise first.pop()
            return await once()

        retrying = AsyncRetrying(stop=stop, wait=_BACKOFF, retry=retry_if_exception(_may_pass), reraise=True)
        return await retrying(again)

    async def _room(self, failed_at: _State | None) -> _State:
        """The least loaded endpoint with room for a request, and not the one that has just failed it where another
        takes requests, be it only once it has room."""
        while True:
            now = time.monotonic()
            if self._unusable is not None:
                raise self._unusable
            well = [state for state in self._states if state is not failed_at and state.takes_requests(now)]
            free = [state for state in well or self._states if state.has_room(now)]
            if free:
                state = min(free, key=_State.load)
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
            state.limit = AdaptiveLimit(state.limit.maximum, state.limit.timeout_s, now)
        state.has_answered = True
        state.circuit.answered(now)

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
        silent_s = now - max(state.circuit.last_answer for state in states)
        if silent_s >= patience_s(self.max_outage_s, any(state.has_answered for state in states)):
            raise outage([state.endpoint for state in states], silent_s, self._last_error)


def patience_s(max_outage_s: float, has_answered: bool) -> float:
    """Seconds to wait for endpoints that are silent; fewer for those that have never answered."""
    return max_outage_s if has_answered else min(max_outage_s, _FIRST_ANSWER_WITHIN_S)


def outage(endpoints: Sequence[Endpoint], silent_s: float, last: str) -> EndpointError:
    """What to tell when endpoints have been silent for too long; `last` is what came of the last request."""
    urls = ", ".join(endpoint.base_url for endpoint in endpoints)
    return EndpointError(
        f"{urls} has not answered for {silent_s:.0f} s (last: {last}). Finished answers are kept; "
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
