"""The cap on tokens and money, with many requests in flight."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml_filter.annotation.budget import Budget
from ml_filter.annotation.config import AnnotateConfig
from ml_filter.annotation.prompts import Prompt
from ml_filter.annotation.responses import Answer
from tests.annotation.misbehaving import PROMPT


@given(
    # length of the text, tokens of its answer, how many are in flight before an answer comes
    st.lists(st.tuples(st.integers(1, 400), st.integers(0, 60), st.integers(0, 5)), max_size=60)
)
def test_answers_in_any_order_never_exceed_the_budget(requests: list[tuple[int, int, int]]) -> None:
    config = AnnotateConfig(budget_tokens=2000)
    prompt = Prompt.model_validate(PROMPT).model_copy(update={"max_tokens": 60})

    async def run() -> float:
        budget = Budget(config)
        in_flight: list[tuple[Any, int, Answer]] = []
        for length, written, wait in requests:
            while len(in_flight) > wait:
                budget.settle(*in_flight.pop())
            size = length + prompt.frame_bytes
            try:
                reserved = await asyncio.wait_for(budget.reserve(prompt, "x" * length), 0.01)
            except TimeoutError:
                while in_flight:
                    budget.settle(*in_flight.pop())
                continue
            if reserved is None:
                break
            in_flight.append((reserved, size, Answer("", prompt_tokens=size // 4, completion_tokens=written)))
        while in_flight:
            budget.settle(*in_flight.pop())
        return sum(budget.used)

    assert asyncio.run(run()) <= 2000


def test_a_reservation_waits_until_requests_in_flight_free_enough():
    prompt = Prompt.model_validate({**PROMPT, "max_tokens": 50})

    async def run() -> None:
        budget = Budget(AnnotateConfig(budget_tokens=150))
        first = await budget.reserve(prompt, "")
        assert first is not None
        second = asyncio.create_task(budget.reserve(prompt, "x" * 150))
        await asyncio.sleep(0.01)
        assert not second.done()
        budget.settle(first, prompt.frame_bytes, Answer("", prompt_tokens=10, completion_tokens=5))
        assert await second is not None
        assert budget.used == (10, 5)
        assert not budget.is_spent

    asyncio.run(run())


def test_earlier_usage_counts_and_a_full_budget_leaves_nothing():
    async def run() -> None:
        budget = Budget(AnnotateConfig(budget_tokens=1000), used=(900, 99))
        assert await budget.reserve(Prompt.model_validate(PROMPT), "") is None
        assert budget.is_spent

    asyncio.run(run())


def test_without_reported_usage_the_reservation_counts_as_used():
    async def run() -> None:
        budget = Budget(AnnotateConfig(budget_tokens=1000))
        reserved = await budget.reserve(Prompt.model_validate(PROMPT), "text")
        assert reserved is not None
        budget.settle(reserved, 100, Answer("Score: 3"))
        assert budget.used == reserved

    asyncio.run(run())


@pytest.mark.parametrize(
    ("caps", "words"),
    [
        ({"budget_tokens": 12_000}, "12,000 tokens (--budget-tokens)"),
        (
            {"budget_usd": 2.5, "usd_per_million_prompt_tokens": 1, "usd_per_million_completion_tokens": 1},
            "2.50 USD (--budget-usd)",
        ),
        (
            {"budget_usd": 0.004, "usd_per_million_prompt_tokens": 1, "usd_per_million_completion_tokens": 1},
            "0.004 USD (--budget-usd)",
        ),
    ],
)
def test_the_budget_as_text(caps, words):
    assert Budget(AnnotateConfig.model_validate(caps)).describe() == words
