"""The concurrency limit, against simulated servers: few slots and many, slow and batching servers, rate limits."""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml_filter.annotation.concurrency import AdaptiveLimit


class Result(NamedTuple):
    """What became of one request, and the limit after it."""

    at_s: float
    limit: int
    answered: bool


def simulate(
    until_s: float,
    places: Callable[[float], int],
    *,
    latency_s: float = 1.0,
    spread: float = 0.3,
    half_speed_at: float = math.inf,
    timeout_s: float = 120.0,
    hangs: float = 0.0,
    per_s: float = math.inf,
    refuses: float = 0.0,
    maximum: int = 1000,
) -> list[Result]:
    """What happens to the requests of a client that always has more of them.

    The server works on `places(now)` requests at once, the others queue. A single one takes a gamma-distributed time
    with mean `latency_s`; with `half_speed_at` others in work it takes twice as long, with twice as many three times,
    as on a GPU that batches. A share `hangs` is never answered; a share `refuses`, and what comes above `per_s` a
    second, gets a rate limit instead.
    """
    rng, now, done_work = random.Random(7), 0.0, 0.0  # done_work: seconds that a request in work from the start had
    sent: dict[int, tuple[float, int]] = {}
    waiting, in_work = deque[int](), set[int]()
    finish: list[tuple[float, int]] = []  # by done_work
    give_up: list[tuple[float, int, bool]] = []  # by time; whether a rate limit
    allowed, filled_s, number = per_s, 0.0, 0
    results: list[Result] = []
    limit = AdaptiveLimit(maximum, timeout_s, now)
    while now < until_s:
        while len(sent) < limit.value:
            number += 1
            sent[number] = now, len(sent) + 1
            if not math.isinf(per_s):
                allowed, filled_s = min(per_s, allowed + (now - filled_s) * per_s), now
            if allowed < 1 or (refuses and rng.random() < refuses):
                heapq.heappush(give_up, (now + 0.02, number, True))
                continue
            allowed -= 1
            waiting.append(number)
            heapq.heappush(give_up, (now + timeout_s, number, False))
        while waiting and len(in_work) < places(now):
            started = waiting.popleft()
            if started in sent:
                in_work.add(started)
                work_s = math.inf if rng.random() < hangs else rng.gammavariate(spread**-2, latency_s * spread**2)
                heapq.heappush(finish, (done_work + work_s, started))
        while finish and finish[0][1] not in in_work:
            heapq.heappop(finish)
        speed = 1 / (1 + len(in_work) / half_speed_at)
        done_s = now + (finish[0][0] - done_work) / speed if finish else math.inf
        while give_up and give_up[0][1] not in sent:
            heapq.heappop(give_up)
        answered = done_s <= give_up[0][0]
        at_s, which = (done_s, finish[0][1]) if answered else give_up[0][:2]
        done_work, now = done_work + (at_s - now) * speed, at_s
        in_work.discard(which)
        sent_s, among = sent[which]
        if answered:
            limit.answered(now, len(sent), now - sent_s, among)
        else:
            limit.pressed(now, len(sent), rate_limited=give_up[0][2])
        del sent[which]
        results.append(Result(now, limit.value, answered))
    return results


def mean_limit(results: Sequence[Result], after_s: float) -> float:
    limits = [result.limit for result in results if result.at_s > after_s]
    return sum(limits) / len(limits)


def rate(results: Sequence[Result], after_s: float) -> float:
    return sum(result.answered for result in results if result.at_s > after_s) / (results[-1].at_s - after_s)


def share_failed(results: Sequence[Result]) -> float:
    return sum(not result.answered for result in results) / len(results)


def test_the_first_requests_are_answered_in_time_by_a_slow_server_with_one_slot():
    results = simulate(3600, lambda now: 1, latency_s=10.0)
    assert share_failed(results) < 0.01
    assert rate(results, 600) > 0.9 / 10


def test_an_unlimited_server_gets_a_thousand_requests_within_six_round_trips():
    results = simulate(30, lambda now: 10_000)
    assert min(result.limit for result in results if result.at_s > 6) >= 900
    assert rate(results, 10) == pytest.approx(1000, rel=0.02)


@pytest.mark.parametrize("places", [5, 20, 50, 100, 300])
@pytest.mark.parametrize("spread", [0.3, 1.0])
def test_a_server_with_few_slots_is_kept_busy_without_a_long_queue(places, spread):
    results = simulate(200, lambda now: places, spread=spread)
    assert rate(results, 30) > 0.93 * places
    assert mean_limit(results, 30) <= max(100, 4 * places)


@pytest.mark.parametrize("half_speed_at", [8, 32, 128])
def test_a_batching_server_gets_close_to_its_full_throughput(half_speed_at):
    results = simulate(300, lambda now: 10_000, half_speed_at=half_speed_at)
    assert rate(results, 60) > 0.9 * 1000 / (1 + 1000 / half_speed_at)


@pytest.mark.parametrize(("places", "latency_s", "timeout_s"), [(2, 5, 60), (20, 5, 60), (100, 10, 60), (20, 5, 12)])
def test_requests_do_not_time_out_in_the_queue(places, latency_s, timeout_s):
    results = simulate(600, lambda now: places, latency_s=latency_s, timeout_s=timeout_s)
    assert share_failed(results) < 0.03
    assert rate(results, 120) > 0.93 * places / latency_s


def test_the_limit_follows_a_changing_number_of_slots():
    grown = simulate(240, lambda now: 100 if now < 40 else 400)
    assert rate(grown, 160) > 0.9 * 400
    shrunk = simulate(240, lambda now: 400 if now < 40 else 50, timeout_s=2.0)
    assert mean_limit(shrunk, 160) < 200
    assert rate(shrunk, 160) > 0.9 * 50


@pytest.mark.parametrize("per_s", [5, 50, 200])
def test_rate_limits_lower_the_limit_and_become_rare(per_s):
    results = simulate(200, lambda now: 10_000, per_s=per_s)
    assert rate(results, 60) > 0.8 * per_s
    assert mean_limit(results, 60) < 1.5 * per_s
    assert share_failed(results) < 0.08


def test_rate_limits_independent_of_the_load_do_not_lower_the_limit():
    results = simulate(120, lambda now: 10_000, latency_s=0.3, hangs=0.05, timeout_s=5.0, refuses=0.01, maximum=64)
    assert mean_limit(results, 10) > 50


def test_time_outs_independent_of_the_load_do_not_collapse_the_limit():
    five = simulate(200, lambda now: 200, hangs=0.05, timeout_s=3.0)
    assert rate(five, 60) > 0.75 * 200
    twenty = simulate(200, lambda now: 200, hangs=0.2, timeout_s=3.0)
    assert min(result.limit for result in twenty if result.at_s > 60) >= 16


def test_the_limit_does_not_grow_with_too_little_work():
    limit = AdaptiveLimit(1000, 120.0, 0.0)
    for i in range(1, 5000):
        limit.answered(i * 0.01, in_flight=5, latency_s=0.05, sent_among=5)
    assert limit.value == 8


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["answered", "rate limited", "timeout"]),
        st.floats(0, 5),
        st.floats(0, 300),
        st.integers(1, 2000),
        st.integers(1, 2000),
    ),
    max_size=300,
)


@given(EVENTS, st.integers(1, 2000), st.floats(0.001, 1000))
def test_the_limit_stays_between_one_and_the_maximum(events, maximum, timeout_s):
    limit, now = AdaptiveLimit(maximum, timeout_s, 0.0), 0.0
    for kind, passed_s, latency_s, in_flight, sent_among in events:
        now += passed_s
        for _ in range(30):
            if kind == "answered":
                limit.answered(now, in_flight, latency_s, sent_among)
            else:
                limit.pressed(now, in_flight, rate_limited=kind == "rate limited")
            assert 1 <= limit.value <= maximum
