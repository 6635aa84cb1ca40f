"""A cap on tokens and money that holds with many requests in flight."""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from ml_filter.annotation.client import RequestFailed
from ml_filter.annotation.config import AskConfig
from ml_filter.annotation.parsing import Answer
from ml_filter.annotation.prompts import Question

_TOKENS_PER_BYTE = 1 / 3
"""A cautious guess before the first answer, and for servers that report no usage; English has some 4 bytes a token."""
_MARGIN = 1.1


class Usage(NamedTuple):
    """Tokens, used or reserved."""

    prompt: float
    completion: float

    def plus(self, other: Usage, sign: int = 1) -> Usage:
        """The sum, or with sign -1 the difference."""
        return Usage(self.prompt + sign * other.prompt, self.completion + sign * other.completion)


NO_TOKENS = Usage(0, 0)


class Budget:
    """Reserves what a request may use before it is sent, so that those in flight cannot pass the cap together.

    Reserved are the prompt tokens that its length in bytes lets expect, by the answers so far and a tenth more, and
    all completion tokens it may write. Where a server reports no usage, and where it is not known whether the model
    worked on a request (a time-out, a connection cut off, an answer that is none), what was reserved counts as used.
    An error in the place of an answer counts as nothing.
    """

    def __init__(self, config: AskConfig, used: tuple[int, int] = (0, 0)) -> None:
        self.config = config
        self.used = Usage(*used)
        self.is_spent = False
        self._reserved = NO_TOKENS
        self._in_flight = 0
        self._bytes = self._tokens = 0.0
        self._settled = asyncio.Event()

    async def reserve(self, prompt: Question, piece: str) -> Usage | None:
        """Reserve for a request, once those in flight leave room for it; None where the cap leaves none at all."""
        wanted = self._wanted(prompt, piece)
        while not self._fits(wanted):
            if not self._in_flight:
                self.is_spent = True
                return None
            self._settled.clear()
            await self._settled.wait()
            wanted = self._wanted(prompt, piece)
        self._in_flight += 1
        self._reserved = self._reserved.plus(wanted)
        return wanted

    def settle(self, reserved: Usage, question_bytes: int, outcome: Answer | RequestFailed) -> None:
        """Put what was used in the place of what was reserved."""
        self._in_flight -= 1
        self._reserved = self._reserved.plus(reserved, -1)
        usage = reported(outcome)
        if usage is not None:
            self.used = self.used.plus(usage)
            self._bytes += question_bytes
            self._tokens += usage.prompt
        elif may_cost(outcome):
            self.used = self.used.plus(reserved)
        self._settled.set()

    def describe(self) -> str:
        """The cap, for a person."""
        caps = []
        if self.config.budget_tokens is not None:
            caps.append(f"{self.config.budget_tokens:,} tokens (--budget-tokens)")
        if self.config.budget_usd is not None:
            usd = self.config.budget_usd
            caps.append(f"{f'{usd:,.2f}' if usd >= 0.1 else f'{usd:.3g}'} USD (--budget-usd)")
        return " or ".join(caps)

    def _wanted(self, prompt: Question, piece: str) -> Usage:
        rate = _MARGIN * self._tokens / self._bytes if self._bytes else _TOKENS_PER_BYTE
        completion = 1 if prompt.mode == "choice" and prompt.top_logprobs else prompt.max_tokens
        return Usage(rate * question_bytes(prompt, piece), self.config.answer_tokens(completion))

    def _fits(self, wanted: Usage) -> bool:
        total = self.used.plus(self._reserved).plus(wanted)
        if self.config.budget_tokens is not None and sum(total) > self.config.budget_tokens:
            return False
        usd = self.config.usd(*total)
        return self.config.budget_usd is None or usd is None or usd <= self.config.budget_usd


class Spending:
    """What the tries of one request use, of a budget.

    Holds the reservation of the try that is on its way. `reported` is what the server said it used, None where it
    said nothing; `assumed` is what was reserved for tries that may have cost without a word of the server about it.
    """

    def __init__(self, budget: Budget, prompt: Question, piece: str) -> None:
        self.budget, self.prompt, self.piece = budget, prompt, piece
        self.reported: Usage | None = None
        self.assumed = NO_TOKENS
        self._reserved: Usage | None = None

    async def has_room(self) -> bool:
        """Whether a try may be made, for which it is reserved then; waits for others that are on their way."""
        if self._reserved is None:
            self._reserved = await self.budget.reserve(self.prompt, self.piece)
        return self._reserved is not None

    def failed(self, error: RequestFailed) -> None:
        """A try has failed. One that cost nothing leaves its reservation to the next."""
        if may_cost(error):
            self._settle(error)

    def end(self, outcome: Answer | RequestFailed) -> None:
        """No other try follows."""
        if self._reserved is not None:
            self._settle(outcome)

    def _settle(self, outcome: Answer | RequestFailed) -> None:
        assert self._reserved is not None
        self.budget.settle(self._reserved, question_bytes(self.prompt, self.piece), outcome)
        usage = reported(outcome)
        if usage is not None:
            self.reported = usage.plus(self.reported or NO_TOKENS)
        elif may_cost(outcome):
            self.assumed = self.assumed.plus(self._reserved)
        self._reserved = None


def reported(outcome: Answer | RequestFailed) -> Usage | None:
    """What the server said was used; None where it did not say it all."""
    if outcome.prompt_tokens is None or outcome.completion_tokens is None:
        return None
    return Usage(outcome.prompt_tokens, outcome.completion_tokens)


def may_cost(outcome: Answer | RequestFailed) -> bool:
    """Whether the model may have worked for it."""
    return outcome.may_cost if isinstance(outcome, RequestFailed) else True


def question_bytes(prompt: Question, piece: str) -> int:
    """Size of a request's text in UTF-8 bytes."""
    return len(piece.encode()) + prompt.frame_bytes
