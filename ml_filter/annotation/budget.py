"""A budget of tokens and money that is not exceeded with many requests in flight."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import NamedTuple, TypeVar

from ml_filter.annotation.config import AskConfig
from ml_filter.annotation.failures import RequestFailed
from ml_filter.annotation.prompts import Question
from ml_filter.annotation.responses import Answer
from ml_filter.documents.manifest import Manifest
from ml_filter.errors import TooManyFailures

Config = TypeVar("Config", bound=AskConfig)
_TOKENS_PER_BYTE = 1 / 3
"""Upper estimate until the first answer, and for servers that report no usage; English has about 4 bytes a token."""
_MARGIN = 1.1
_COUNTED = ("prompt_tokens", "completion_tokens")


class Usage(NamedTuple):
    """Tokens, used or reserved."""

    prompt: float
    completion: float

    def plus(self, other: Usage, sign: int = 1) -> Usage:
        """The sum, or with sign -1 the difference."""
        return Usage(self.prompt + sign * other.prompt, self.completion + sign * other.completion)


NO_TOKENS = Usage(0, 0)


class Budget:
    """Reserves the most that a request may use before it is sent, so that the requests in flight cannot exceed the
    budget together.

    A reservation holds the prompt tokens estimated from the length in bytes (by the answers so far, plus 10%) and all
    completion tokens that the answer may have. The reservation counts as used if the server reports no usage, or if it
    is unknown whether the model processed the request (time-out, lost connection, malformed answer). An error response
    counts as nothing.
    """

    def __init__(self, config: AskConfig, used: tuple[int, int] = (0, 0)) -> None:
        self.config = config
        self.used = Usage(*used)
        self.is_spent = False
        self._reserved = NO_TOKENS
        self._in_flight = 0
        self._bytes = self._tokens = 0.0
        self._settled = asyncio.Event()

    async def reserve(self, question: Question, piece: str) -> Usage | None:
        """Reserve tokens for a request, waiting until requests in flight free enough; None if the budget is used up."""
        needed = self._needed(question, piece)
        while not self._fits(needed):
            if not self._in_flight:
                self.is_spent = True
                return None
            self._settled.clear()
            await self._settled.wait()
            needed = self._needed(question, piece)
        self._in_flight += 1
        self._reserved = self._reserved.plus(needed)
        return needed

    def settle(self, reserved: Usage, question_bytes: int, outcome: Answer | RequestFailed) -> None:
        """Replace a reservation by what was used."""
        self._in_flight -= 1
        self._reserved = self._reserved.plus(reserved, -1)
        usage = reported(outcome)
        if usage is not None:
            self.used = self.used.plus(usage)
            self._bytes += question_bytes
            self._tokens += usage.prompt
        elif outcome.may_cost:
            self.used = self.used.plus(reserved)
        self._settled.set()

    def describe(self) -> str:
        """The budget as text, for messages."""
        limits = []
        if self.config.budget_tokens is not None:
            limits.append(f"{self.config.budget_tokens:,} tokens (--budget-tokens)")
        if self.config.budget_usd is not None:
            usd = self.config.budget_usd
            limits.append(f"{f'{usd:,.2f}' if usd >= 0.1 else f'{usd:.3g}'} USD (--budget-usd)")
        return " or ".join(limits)

    def _needed(self, question: Question, piece: str) -> Usage:
        rate = _MARGIN * self._tokens / self._bytes if self._bytes else _TOKENS_PER_BYTE
        completion = 1 if question.mode == "choice" and question.top_logprobs else question.max_tokens
        return Usage(rate * question.bytes_with(piece), self.config.answer_tokens(completion))

    def _fits(self, needed: Usage) -> bool:
        total = self.used.plus(self._reserved).plus(needed)
        if self.config.budget_tokens is not None and sum(total) > self.config.budget_tokens:
            return False
        usd = self.config.usd(*total)
        return self.config.budget_usd is None or usd is None or usd <= self.config.budget_usd


class SharedBudget:
    """A number of tokens, and of USD, for several runs together; None: no limit."""

    def __init__(self, tokens: int | None, usd: float | None = None) -> None:
        self.tokens, self.usd = tokens, usd

    def share(self, config: Config, *before: Manifest) -> Config:
        """The configuration with what the runs that wrote `before` have left of the budget. The USD that they used are
        at the prices of the configuration; tokens that no server reported count as those of answers.

        Raises:
            TooManyFailures: nothing is left, and `at_budget` is stop.
        """
        prompt, completion = (sum(manifest.counts.get(name, 0) for manifest in before) for name in _COUNTED)
        completion += sum(manifest.counts.get("tokens_unreported", 0) for manifest in before)
        tokens, usd = prompt + completion, config.usd(prompt, completion) or 0
        left: dict[str, float] = {}
        if self.tokens is not None:
            left["budget_tokens"] = self.tokens - tokens
        if self.usd is not None:
            left["budget_usd"] = self.usd - usd
        for name, amount in left.items():
            if amount <= 0 and config.at_budget == "stop":
                used = {"budget_tokens": f"{tokens:,} tokens", "budget_usd": f"{usd:.2f} USD"}[name]
                raise TooManyFailures(
                    f"the {name} of all stages is used up: the stages so far used {used}. Run again with a higher "
                    f"{name}; finished stages are not repeated"
                )
        return config.model_copy(update={name: max(amount, 0) for name, amount in left.items()})


class Spending:
    """What all tries of one request use of a budget.

    Holds the reservation of the current try. `reported` is the usage reported by the server, None without a report;
    `assumed` sums the reservations of tries that may have cost something but were not reported.
    """

    def __init__(self, budget: Budget, question: Question, piece: str) -> None:
        self.budget, self.question, self.piece = budget, question, piece
        self.reported: Usage | None = None
        self.assumed = NO_TOKENS
        self._reserved: Usage | None = None

    async def has_room(self) -> bool:
        """Reserve tokens for the next try; False if the budget is used up. Waits for other requests to free tokens."""
        if self._reserved is None:
            self._reserved = await self.budget.reserve(self.question, self.piece)
        return self._reserved is not None

    def failed(self, error: RequestFailed) -> None:
        """Account for a failed try. If it cost nothing, its reservation passes to the next try."""
        if error.may_cost:
            self._settle(error)

    def end(self, outcome: Answer | RequestFailed) -> None:
        """Account for the last try."""
        if self._reserved is not None:
            self._settle(outcome)

    def _settle(self, outcome: Answer | RequestFailed) -> None:
        assert self._reserved is not None
        self.budget.settle(self._reserved, self.question.bytes_with(self.piece), outcome)
        usage = reported(outcome)
        if usage is not None:
            self.reported = usage.plus(self.reported or NO_TOKENS)
        elif outcome.may_cost:
            self.assumed = self.assumed.plus(self._reserved)
        self._reserved = None


def reported(outcome: Answer | RequestFailed) -> Usage | None:
    """The usage reported by the server; None if any part of it is missing."""
    if outcome.prompt_tokens is None or outcome.completion_tokens is None:
        return None
    return Usage(outcome.prompt_tokens, outcome.completion_tokens)


def total_if_known(values: Iterable[float | None]) -> float | None:
    """The sum of tokens or prices; None if one of them is unknown."""
    numbers = list(values)
    return None if None in numbers else sum(number or 0 for number in numbers)
