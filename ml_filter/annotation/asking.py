"""Asking: send the open calls of a plan to the endpoints, many at once, and record every answer as it arrives."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Sequence

from ml_filter.annotation.annotator import Annotator
from ml_filter.annotation.budget import Budget
from ml_filter.annotation.client import Endpoint
from ml_filter.annotation.connection import open_endpoints
from ml_filter.annotation.endpoints import EndpointPool
from ml_filter.annotation.ledger import Ledger
from ml_filter.annotation.plan import Call, OpenCalls, Plan
from ml_filter.annotation.responses import RequestFailed
from ml_filter.annotation.run import AnswerSource, Recorder
from ml_filter.config import Settings
from ml_filter.errors import EndpointError, MlFilterError
from ml_filter.progress import progress

_SAME_REJECTIONS = 20
_NUMBERS = re.compile(r"\S*\d\S*")
"""What differs between rejections for the same reason: request ids, counts."""


class Asking(AnswerSource):
    """Gets answers from the endpoints of the settings.

    Attributes:
        requests: how many calls this process has made; `seconds`: how long that took.
    """

    retry_hint = "run again"

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.requests, self.seconds = 0, 0.0
        self._same_rejections: _SameRejections | None = _SameRejections()

    def fill(self, plan: Plan, ledger: Ledger, budget: Budget) -> None:
        """Ask everything that is open, as far as the budget allows. Connects only if a call is open.

        Raises:
            EndpointError: no endpoint answers, or all requests are rejected with the same error.
        """
        calls = OpenCalls(plan, ledger)
        if calls.is_empty:
            return
        self.plan, self.budget, self.recorder = plan, budget, Recorder(plan, ledger)
        with open_endpoints(plan.config, self.settings) as endpoints:
            asyncio.run(self._ask(endpoints, calls))

    async def _ask(self, endpoints: Sequence[Endpoint], calls: OpenCalls) -> None:
        plan, concurrency = self.plan, self.plan.config.max_concurrency
        # As long as the number of workers: reading stays ahead of them without filling memory.
        queue: asyncio.Queue[Call | None] = asyncio.Queue(maxsize=concurrency)
        async with EndpointPool(endpoints, plan.config) as pool:
            annotator = Annotator(pool, plan.config)
            title = f"{plan.task.doing} with {plan.annotator}"
            with progress(title, plan.total_votes, lambda: self._status(pool)) as bar:
                start = time.monotonic()

                async def work() -> None:
                    while (call := await queue.get()) is not None:
                        if await self._answer(annotator, call):
                            bar.advance()

                async def feed() -> None:
                    async for open_calls in calls.by_vote(lambda question: plan.task.windows(annotator, question)):
                        bar.skip(calls.finished + 1 - len(open_calls))  # a long document takes several calls
                        calls.finished = 0
                        for call in open_calls:
                            await queue.put(call)
                        if self.budget.is_spent:
                            break
                    for _ in range(concurrency):
                        await queue.put(None)

                try:
                    async with asyncio.TaskGroup() as group:
                        group.create_task(feed())
                        for _ in range(concurrency):
                            group.create_task(work())
                except* MlFilterError as errors:
                    raise errors.exceptions[0] from None
                self.seconds = time.monotonic() - start

    async def _answer(self, annotator: Annotator, call: Call) -> bool:
        """Make a call and record its outcome; False if the budget has no room for it."""
        result = await annotator.ask(call.question, call.piece, call.key.vote, self.budget)
        if result is None:
            return False
        outcome, spending = result
        self.requests += 1
        # No await between the end of a request and its record: a cancelled task cannot lose a paid answer.
        self.recorder.record(call, outcome, spending.reported, spending.assumed)
        if not isinstance(outcome, RequestFailed):
            self._same_rejections = None
        elif self._same_rejections:
            self._same_rejections.count(outcome)
        return True

    def _status(self, pool: EndpointPool) -> str:
        used = self.budget.used
        usd = self.plan.config.usd(*used)
        cost = "" if usd is None else f", {usd:,.2f} USD"
        return f"{self.recorder.failed:,} failed, {pool.in_flight:,} in flight, {sum(used):,.0f} tokens{cost}"


class _SameRejections:
    """Ends a run early if every request is rejected with the same error, for example an unsupported parameter."""

    def __init__(self) -> None:
        self._count = 0
        self._message: str | None = None

    def count(self, failure: RequestFailed) -> None:
        """Count a failed request. Raises EndpointError for the 20th rejection in a row with the same message."""
        message = _NUMBERS.sub("", str(failure)) if failure.code == "bad_request" else None
        self._count = 0 if message is None else self._count + 1 if message == self._message else 1
        self._message = message
        if self._count >= _SAME_REJECTIONS:
            raise EndpointError(
                f"the endpoint rejected the first {_SAME_REJECTIONS} requests with the same error: "
                f"{str(failure).rstrip('.')}. Check the setting that the message names: the model, extra_body, top_p, "
                "temperature, structured, or top_logprobs and max_tokens of the prompt. These documents have failed "
                "with the code bad_request; fix the setting, then ask for them again with --retry-failed"
            )
