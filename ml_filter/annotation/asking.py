"""Asking: send the open calls of a plan to the endpoints, many at once, and record every answer as it arrives."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from ml_filter.annotation.annotator import Annotator
from ml_filter.annotation.budget import Budget
from ml_filter.annotation.client import Endpoint
from ml_filter.annotation.connection import open_endpoints
from ml_filter.annotation.endpoints import EndpointPool
from ml_filter.annotation.ledger import Ledger
from ml_filter.annotation.plan import Call, OpenCalls, Plan
from ml_filter.annotation.run import AnswerSource, Recorder
from ml_filter.annotation.traces import Traces
from ml_filter.config import Settings
from ml_filter.errors import MlFilterError
from ml_filter.metrics import Sample, exported
from ml_filter.progress import progress


class Asking(AnswerSource):
    """Gets answers from the endpoints of the settings.

    Attributes:
        requests: how many calls this process has made; `seconds`: how long that took.
    """

    retry_hint = "run again"

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.requests, self.seconds = 0, 0.0
        self._error: MlFilterError | None = None
        self._room = asyncio.Lock()

    @property
    def recorded(self) -> int:
        """How many answers it has put into the ledger."""
        return self.requests

    def fill(self, plan: Plan, ledger: Ledger, budget: Budget) -> None:
        """Ask everything that is open, as far as the budget allows. Connects only if a call is open.

        Raises:
            EndpointError: no endpoint answers or can be used, or the first answers all fail with the same code.
        """
        calls = OpenCalls(plan, ledger)
        if calls.is_empty:
            return
        self.plan, self.budget, self.recorder = plan, budget, Recorder(plan, ledger, self.retry_hint)
        with open_endpoints(plan.config, self.settings) as endpoints:
            asyncio.run(self._ask(endpoints, calls))

    async def _ask(self, endpoints: Sequence[Endpoint], calls: OpenCalls) -> None:
        plan, concurrency = self.plan, self.plan.config.max_concurrency
        # As long as the number of workers: reading stays ahead of them without filling memory.
        queue: asyncio.Queue[Call | None] = asyncio.Queue(maxsize=concurrency)
        async with EndpointPool(endpoints, plan.config) as pool:
            annotator = Annotator(pool, plan.config)
            title = f"{plan.task.doing} with {plan.annotator}"
            labels = {"annotator": plan.annotator, "task": plan.task.kind}
            with (
                exported("annotation", labels, lambda: self._samples(pool), self.settings),
                Traces(plan.annotator, plan.task.kind, self.settings.trace_share) as self.traces,
                progress(title, plan.total_votes, lambda: self._status(pool)) as bar,
            ):
                start = time.monotonic()

                async def work() -> None:
                    while (call := await queue.get()) is not None:
                        if await self._answer(annotator, call):
                            bar.advance()

                async def feed() -> None:
                    try:
                        async for open_calls in calls.by_vote(lambda question: plan.task.windows(annotator, question)):
                            bar.skip(calls.finished + 1 - len(open_calls))  # a long document takes several calls
                            calls.finished = 0
                            for call in open_calls:
                                await queue.put(call)
                            if self.budget.is_spent or self._error:
                                break
                    except MlFilterError as error:
                        self._stop(annotator, error)
                    for _ in range(concurrency):
                        await queue.put(None)

                async with asyncio.TaskGroup() as group:
                    group.create_task(feed())
                    for _ in range(concurrency):
                        group.create_task(work())
                self.seconds = time.monotonic() - start
        if self._error:
            raise self._error

    def _stop(self, annotator: Annotator, error: MlFilterError) -> None:
        """End the run: requests in flight are still recorded, because they may have to be paid for."""
        self._error = self._error or error
        annotator.pool.stop(error)

    async def _answer(self, annotator: Annotator, call: Call) -> bool:
        """Make a call and record its outcome; False if the budget is used up or the run ends."""
        if self._error:
            return False
        try:
            await self._wait_for_room()
            if call.refused is not None:
                self.requests += 1
                self.recorder.record(call, call.refused, None)
                return True
            result = await annotator.ask(call.question, call.piece, call.key.vote, self.budget)
            if result is None:
                return False
            outcome, spending = result
            self.requests += 1
            # No await between the end of a request and its record: a cancelled task cannot lose a paid answer.
            self.recorder.record(call, outcome, spending.reported, spending.assumed)
            self.traces.add(call, outcome)
        except MlFilterError as error:
            self._stop(annotator, error)
            return False
        return True

    async def _wait_for_room(self) -> None:
        """Ask for no more answers than the ledger can save."""
        if not self.recorder.ledger.has_room():
            async with self._room:  # one thread waits for all workers
                await asyncio.to_thread(self.recorder.ledger.wait_for_room)

    def _samples(self, pool: EndpointPool) -> list[Sample]:
        failed, latencies, used = self.recorder.failed, self.recorder.latencies, self.budget.used
        usd = self.plan.config.usd(*used)
        quantiles = {share: latencies.quantile(share) for share in (0.5, 0.95)}
        return [
            Sample("annotation_answers", self.requests - failed, {"status": "scored"}),
            Sample("annotation_answers", failed, {"status": "failed"}),
            Sample("annotation_tokens", used.prompt, {"kind": "prompt"}),
            Sample("annotation_tokens", used.completion, {"kind": "completion"}),
            Sample("annotation_in_flight", pool.in_flight),
            *(
                Sample("annotation_latency_seconds", seconds, {"quantile": str(share)})
                for share, seconds in quantiles.items()
                if seconds is not None
            ),
            *([] if usd is None else [Sample("annotation_usd", usd)]),
        ]

    def _status(self, pool: EndpointPool) -> str:
        used = self.budget.used
        usd = self.plan.config.usd(*used)
        cost = "" if usd is None else f", {usd:,.2f} USD"
        return f"{self.recorder.failed:,} failed, {pool.in_flight:,} in flight, {sum(used):,.0f} tokens{cost}"
