"""Estimate the cost of an annotation: ask about a small random pilot exactly as the run would, and extrapolate.

A total is documents * requests per document * tokens per answered request. Its interval is a percentile bootstrap
interval over the documents of the pilot, so that votes, prompts and windows of one document stay together. The answers
go into the run's ledger and are not paid for again.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from ml_filter.annotation.annotate import annotation_plan
from ml_filter.annotation.asking import Asking
from ml_filter.annotation.budget import Budget
from ml_filter.annotation.config import AnnotateConfig, EstimateConfig
from ml_filter.annotation.connection import annotator_name
from ml_filter.annotation.ledger import Ledger, default_ledger, open_ledger
from ml_filter.annotation.plan import Plan
from ml_filter.config import Settings
from ml_filter.documents.config import SourceConfig
from ml_filter.documents.manifest import digest_of
from ml_filter.documents.rejects import RejectsLog
from ml_filter.errors import TooManyFailures
from ml_filter.location import Location
from ml_filter.prepare.config import SampleConfig
from ml_filter.prepare.sampling import sample_documents

ESTIMATE_NAME = "estimate.json"

Array = NDArray[np.float64]


class Range(BaseModel):
    """A figure with its interval; None if the pilot has only one document."""

    value: float
    low: float | None = None
    high: float | None = None


class Pilot(BaseModel):
    """The pilot and what it used. `asked` and `seconds` leave out answers that were already in the ledger."""

    documents: int
    requests: int
    answered: int
    errors: dict[str, int]
    prompt_tokens: int
    completion_tokens: int
    usd: float | None
    asked: int
    seconds: float
    in_flight: float | None
    ledger: str | None


class Estimate(BaseModel):
    """The cost of annotating all documents. A figure is None if it cannot be known; `notes` say why."""

    documents: int
    requests: Range
    prompt_tokens: Range | None
    completion_tokens: Range | None
    hours: Range | None
    usd: Range | None
    confidence: float
    pilot: Pilot
    notes: list[str]
    digest: str = ""
    asked_digest: str = ""
    """Digests of all settings, and of those that determine the requests of the pilot."""


def estimate_bill(
    source: SourceConfig,
    annotate: AnnotateConfig,
    config: EstimateConfig,
    *,
    output: str | Path | None = None,
    settings: Settings | None = None,
) -> Estimate:
    """Ask about a few documents and extrapolate to all.

    Args:
        source: the documents to annotate; read once, to count them and to draw the pilot.
        annotate: how to annotate, with prices per million tokens.
        config: size and seed of the pilot.
        output: directory that the annotations will go to. Gets estimate.json and, unless `annotate.ledger` names
            another, the ledger with the pilot's answers. An existing estimate with the same settings is returned.

    Raises:
        TooManyFailures: the budget is used up, or no request of the pilot was answered.
        EndpointError, InputError, ConfigError: see `annotate_documents`.
    """
    settings = settings or Settings()
    annotator = annotator_name(annotate, settings)
    plan = annotation_plan(source, annotate, annotator)
    parents = [parent.digest for parent in plan.parents]
    asked_digest = digest_of([plan.identity, parents, config.model_dump(), annotate.endpoints])
    digest = digest_of([asked_digest, annotate.model_dump()])
    place = None if output is None else Location(output)
    earlier = _existing(place / ESTIMATE_NAME, asked_digest) if place else None
    if earlier and earlier.digest == digest:
        return earlier
    asking = Asking(settings)
    with tempfile.TemporaryDirectory(prefix="ml_filter-pilot-") as scratch:
        sample = sample_documents(source, SampleConfig(size=config.pilot, seed=config.seed), f"{scratch}/sample")
        pilot = annotation_plan(SourceConfig(paths=[sample.root]), annotate, annotator)
        kept = annotate.ledger or (str(default_ledger(place)) if place else None)
        with open_ledger(kept or default_ledger(Location(scratch)), annotate) as ledger:
            budget = Budget(annotate, ledger.tokens_used(pilot.question_digests))
            asking.fill(pilot, ledger, budget)
            if earlier and not asking.requests:  # only prices changed, for example: keep the measured time
                asking.requests, asking.seconds = earlier.pilot.asked, earlier.pilot.seconds
            measured, errors = _measure(pilot, ledger)
        if not len(measured.requests):
            raise TooManyFailures(
                f"the budget of {budget.describe()} is used up before one document of the pilot was done"
            )
        estimate = _extrapolate(measured, errors, asking, annotate, config, sample.counts["read"], kept)
    estimate = estimate.model_copy(update={"digest": digest, "asked_digest": asked_digest})
    if place:
        (place / ESTIMATE_NAME).write_bytes(f"{estimate.model_dump_json(indent=1)}\n".encode())
    return estimate


def _existing(file: Location, asked_digest: str) -> Estimate | None:
    try:
        estimate = Estimate.model_validate_json(file.find_bytes() or b"")
    except ValidationError:
        return None
    return estimate if estimate.asked_digest == asked_digest else None


class _Measured(NamedTuple):
    """Sums for each document of the pilot, arrays of shape [documents].

    `counted` are the requests whose tokens are known, `timed` those that were answered.
    """

    requests: Array
    counted: Array
    prompt_tokens: Array
    completion_tokens: Array
    timed: Array
    seconds: Array


def _measure(plan: Plan, ledger: Ledger) -> tuple[_Measured, Counter[str]]:
    """Measure the documents of which every window has an outcome; also counts errors by code."""
    sums: list[list[float]] = []
    errors: Counter[str] = Counter()
    votes = (vote for _, table in plan.tables(RejectsLog()) for vote in plan.votes(table))
    for _, group in groupby(votes, key=lambda vote: vote.key.document_id):
        answers = [ledger.answers(vote.key)[0] for vote in group]
        if any(not rows or len(rows) < rows[0]["windows"] for rows in answers):
            continue
        rows = [row for rows in answers for row in rows]
        counted = [row for row in rows if None not in (row["prompt_tokens"], row["completion_tokens"])]
        timed = [row["latency_s"] for row in rows if row["latency_s"] is not None]
        tokens = [sum(row[name] for row in counted) for name in ("prompt_tokens", "completion_tokens")]
        sums.append([len(rows), len(counted), *tokens, len(timed), sum(timed)])
        errors.update(row["error"] for row in rows if row["error"])
    figures = np.array(sums, dtype=np.float64).reshape(-1, 6)
    return _Measured(*figures.T), errors


def _extrapolate(
    measured: _Measured,
    errors: Counter[str],
    asking: Asking,
    annotate: AnnotateConfig,
    config: EstimateConfig,
    documents: int,
    ledger: str | None,
) -> Estimate:
    requests, answered = int(measured.requests.sum()), int(measured.timed.sum())
    listed = ", ".join(f"{code} {count:,}" for code, count in errors.most_common())
    if not answered:
        raise TooManyFailures(f"none of the pilot's {requests:,} requests was answered: {listed}")
    notes = []
    if errors:
        notes.append(f"{errors.total():,} of {requests:,} requests of the pilot failed: {listed}")
    n = len(measured.requests)
    # How often each document is drawn in each bootstrap resample, shape [resamples, documents].
    draws = np.random.default_rng(config.seed).multinomial(n, np.full(n, 1 / n), size=config.resamples)
    values = _totals(measured, np.ones((1, n)), documents)
    resampled = _totals(measured, draws.astype(np.float64), documents)
    seconds = asking.seconds / asking.requests if asking.requests else np.nan
    for totals in (values, resampled):
        # A request takes longer in a resample with longer answers.
        relative_latency = totals["latency"] / (measured.seconds.sum() / answered)
        totals["hours"] = totals["requests"] * seconds / 3600 * relative_latency
        usd = [annotate.usd(p, c) for p, c in zip(totals["prompt_tokens"], totals["completion_tokens"], strict=True)]
        totals["usd"] = np.array([np.nan if dollars is None else dollars for dollars in usd])

    def interval(name: str) -> Range | None:
        value, tail = float(values[name][0]), (1 - config.confidence) / 2
        if not np.isfinite(value):
            return None
        if n < 2:
            return Range(value=value)
        low, high = np.nanquantile(resampled[name], [tail, 1 - tail])
        return Range(value=value, low=float(low), high=float(high))

    in_flight = float(values["latency"][0] * asking.requests / asking.seconds) if asking.requests else None
    notes += _timing_notes(asking, annotate, in_flight)
    if not np.isfinite(values["prompt_tokens"][0]):
        notes.append("tokens and costs are unknown: the endpoint reports no token counts")
    elif annotate.usd(1, 1) is None:
        notes.append("costs are unknown: set usd_per_million_prompt_tokens and usd_per_million_completion_tokens")
    if ledger is None:
        notes.append(
            "the answers of the pilot were not kept; use --output or a ledger in the configuration to keep them"
        )
    used = int(measured.prompt_tokens.sum()), int(measured.completion_tokens.sum())
    intervals = {name: interval(name) for name in ("requests", "prompt_tokens", "completion_tokens", "hours", "usd")}
    return Estimate(
        documents=documents,
        **intervals,
        confidence=config.confidence,
        pilot=Pilot(
            documents=n,
            requests=requests,
            answered=answered,
            errors=dict(errors.most_common()),
            prompt_tokens=used[0],
            completion_tokens=used[1],
            usd=annotate.usd(*used),
            asked=asking.requests,
            seconds=asking.seconds,
            in_flight=in_flight,
            ledger=ledger,
        ),
        notes=notes,
    )


def _timing_notes(asking: Asking, annotate: AnnotateConfig, in_flight: float | None) -> Iterator[str]:
    if in_flight is None:
        yield "hours are unknown: all answers of the pilot were already in the ledger; draw another with --pilot-seed"
        return
    yield (
        f"hours extrapolate {asking.requests:,} requests in {asking.seconds:,.1f} s, start-up included, with "
        f"{in_flight:,.1f} requests in flight on average; the interval covers the choice of documents, not a server "
        "that slows down"
    )
    if in_flight < 0.8 * annotate.max_concurrency:
        yield (
            "hours are an upper bound if the server can process more requests at once: a long run finds out, up to "
            f"max_concurrency ({annotate.max_concurrency:,}); a larger --pilot gives a better estimate"
        )


def _totals(measured: _Measured, weights: Array, documents: int) -> dict[str, Array]:
    """Totals over all documents for each row of `weights`. A failed request counts like an answered one."""
    requests = documents * (weights @ measured.requests) / len(measured.requests)
    with np.errstate(invalid="ignore", divide="ignore"):  # a resample without an answered request is nan
        counted = weights @ measured.counted
        return {
            "requests": requests,
            "prompt_tokens": requests * (weights @ measured.prompt_tokens) / counted,
            "completion_tokens": requests * (weights @ measured.completion_tokens) / counted,
            "latency": (weights @ measured.seconds) / (weights @ measured.timed),
        }
