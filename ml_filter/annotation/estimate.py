"""The bill before the run: a pilot asks about a few documents exactly as the run would, and is scaled up.

The pilot's documents are drawn at random from what is to be annotated. Totals are documents * requests a document *
tokens an answered request; the intervals are percentile bootstrap intervals over the pilot's documents, so votes,
prompts and windows of one document stay together. Its answers go into the run's ledger and are not paid again.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from ml_filter.annotation.annotate import Run, annotator_name, prepare
from ml_filter.annotation.config import AnnotateConfig, EstimateConfig
from ml_filter.annotation.ledger import Ledger
from ml_filter.config import Settings
from ml_filter.documents.config import SourceConfig
from ml_filter.documents.manifest import LEDGER_NAME, digest_of
from ml_filter.documents.rejects import RejectsLog
from ml_filter.documents.writer import write_atomically
from ml_filter.errors import TooManyFailures
from ml_filter.prepare.config import SampleConfig
from ml_filter.prepare.sampling import sample_documents

ESTIMATE_NAME = "estimate.json"

Array = NDArray[np.float64]


class Range(BaseModel):
    """A figure and its interval; None where the pilot has a single document."""

    value: float
    low: float | None = None
    high: float | None = None


class Pilot(BaseModel):
    """What the pilot was and used. `asked` and `seconds` leave out answers that were in the ledger before."""

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
    """What annotating all documents takes. None: the server or the configuration does not say; `notes` say why."""

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
    """Of all settings, and of those that say what the pilot asked whom."""


class _Measured(NamedTuple):
    """Sums over each document of the pilot, all [documents]."""

    requests: Array
    counted: Array
    prompt_tokens: Array
    completion_tokens: Array
    timed: Array
    seconds: Array


def estimate_bill(
    source: SourceConfig,
    annotate: AnnotateConfig,
    config: EstimateConfig,
    *,
    output: str | Path | None = None,
    settings: Settings | None = None,
) -> Estimate:
    """Ask about a few documents and say what all of them would take.

    Args:
        source: what is to be annotated; read once, to count it and to draw the pilot.
        annotate: how, with prices per million tokens.
        config: size and seed of the pilot.
        output: gets estimate.json and, unless `annotate.ledger` names one, the ledger with the pilot's answers: give
            the directory that the annotations will go to. A finished estimate that is there is returned as it is.
        settings: endpoint and key of the environment; read from it when not given.

    Raises:
        TooManyFailures: the budget is used up, or no request of the pilot was answered.
        EndpointError, InputError, ConfigError: as `annotate_documents`.
    """
    settings = settings or Settings()
    annotator = annotator_name(annotate, settings)
    _, made_by, parents = prepare(Run, source, annotate, annotator)
    asked_digest = digest_of([made_by, [parent.digest for parent in parents], config.model_dump(), annotate.endpoints])
    digest = digest_of([asked_digest, annotate.model_dump()])
    earlier = None if output is None else _found(Path(output) / ESTIMATE_NAME, asked_digest)
    if earlier and earlier.digest == digest:
        return earlier
    with tempfile.TemporaryDirectory(prefix="ml_filter-pilot-") as scratch:
        drawn = sample_documents(source, SampleConfig(size=config.pilot, seed=config.seed), f"{scratch}/sample")
        run, _, _ = prepare(Run, SourceConfig(paths=[drawn.root]), annotate, annotator)
        kept = annotate.ledger or (None if output is None else str(Path(output) / LEDGER_NAME))
        with Ledger(Path(kept or f"{scratch}/{LEDGER_NAME}")) as ledger:
            run.open(ledger)
            run.ask_all(settings)
            if earlier and not run.asked:  # other prices, say: what the pilot took was measured then
                run.asked, run.asking_s = earlier.pilot.asked, earlier.pilot.seconds
            made = _scaled(run, annotate, config, drawn.counts["read"], kept)
    made = made.model_copy(update={"digest": digest, "asked_digest": asked_digest})
    if output is not None:
        write_atomically(Path(output) / ESTIMATE_NAME, f"{made.model_dump_json(indent=1)}\n".encode())
    return made


def _found(path: Path, asked_digest: str) -> Estimate | None:
    try:
        found = Estimate.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
    return found if found.asked_digest == asked_digest else None


def _scaled(run: Run, annotate: AnnotateConfig, config: EstimateConfig, documents: int, ledger: str | None) -> Estimate:
    measured, errors, answered = _measure(run)
    requests = int(measured.requests.sum())
    if not len(measured.requests):
        raise TooManyFailures(f"the budget of {run.budget.describe()} is used up before one document of the pilot")
    if not answered:
        raise TooManyFailures(f"none of the pilot's {requests:,} requests was answered: {_listed(errors)}")
    notes = []
    if errors:
        notes.append(f"{errors.total():,} of {requests:,} requests of the pilot failed: {_listed(errors)}")
    whole = np.ones((1, len(measured.requests)))
    weights = _resampled(len(measured.requests), config)
    value, drawn = _totals(measured, whole, documents), _totals(measured, weights, documents)

    def ranged(name: str) -> Range | None:
        if not np.isfinite(value[name][0]):
            return None
        bounds = _bounds(drawn[name], config.confidence) if len(weights) else (None, None)
        return Range(value=float(value[name][0]), low=bounds[0], high=bounds[1])

    seconds = run.asking_s / run.asked if run.asked else np.nan
    for totals in (value, drawn):
        typical = measured.seconds.sum() / measured.timed.sum()
        totals["hours"] = totals["requests"] * seconds / 3600 * (totals["latency"] / typical)
        usd = [annotate.usd(p, c) for p, c in zip(totals["prompt"], totals["completion"], strict=True)]
        totals["usd"] = np.array([np.nan if dollars is None else dollars for dollars in usd])
    in_flight = float(value["latency"][0] * run.asked / run.asking_s) if run.asked else None
    notes += _timing_notes(run, annotate, in_flight)
    if not np.isfinite(value["prompt"][0]):
        notes.append("the endpoint reports no token counts, so tokens and money are not known")
    elif annotate.usd(1, 1) is None:
        notes.append("money is not known: set usd_per_million_prompt_tokens and usd_per_million_completion_tokens")
    if ledger is None:
        notes.append("the pilot's answers were not kept: with a ledger in the configuration, or --output, they are")
    used = int(measured.prompt_tokens.sum()), int(measured.completion_tokens.sum())
    total = ranged("requests")
    assert total is not None
    return Estimate(
        documents=documents,
        requests=total,
        prompt_tokens=ranged("prompt"),
        completion_tokens=ranged("completion"),
        hours=ranged("hours"),
        usd=ranged("usd"),
        confidence=config.confidence,
        pilot=Pilot(
            documents=len(measured.requests),
            requests=requests,
            answered=answered,
            errors=dict(errors.most_common()),
            prompt_tokens=used[0],
            completion_tokens=used[1],
            usd=annotate.usd(*used),
            asked=run.asked,
            seconds=run.asking_s,
            in_flight=in_flight,
            ledger=ledger,
        ),
        notes=notes,
    )


def _listed(errors: Counter[str]) -> str:
    return ", ".join(f"{code} {count:,}" for code, count in errors.most_common())


def _timing_notes(run: Run, annotate: AnnotateConfig, in_flight: float | None) -> Iterable[str]:
    if in_flight is None:
        yield "hours are not known: all answers of the pilot were in the ledger already; draw another with --pilot-seed"
        return
    yield (
        f"hours are what {run.asked:,} requests in {run.asking_s:,.1f} s come to, start-up included, with "
        f"{in_flight:,.1f} requests in flight on average; the interval is for the documents, not for a server that "
        "slows down"
    )
    if in_flight < 0.8 * annotate.max_concurrency:
        yield (
            f"hours are an upper bound where the server takes more requests at once: a long run finds that out, up to "
            f"max_concurrency ({annotate.max_concurrency:,}); a larger --pilot tells"
        )


def _measure(run: Run) -> tuple[_Measured, Counter[str], int]:
    """Sums over the documents whose requests have all been made, errors by code, and how many were answered."""
    sums: list[list[float]] = []
    errors: Counter[str] = Counter()
    answered = 0
    for _, table in run.tables(RejectsLog()):
        for document_id, text, prompts in run.questions(table):
            calls = [run.ledger.rows(key) for _, key in run.keys(document_id, text, prompts)]
            if any(not rows or len(rows) < rows[0]["windows"] for rows in calls):
                continue
            rows = [row for call in calls for row in call]
            counted = [r for r in rows if r["prompt_tokens"] is not None and r["completion_tokens"] is not None]
            timed = [r["latency_s"] for r in rows if r["latency_s"] is not None]
            tokens = sum(r["prompt_tokens"] for r in counted), sum(r["completion_tokens"] for r in counted)
            sums.append([len(rows), len(counted), *tokens, len(timed), sum(timed)])
            errors.update(row["error"] for row in rows if row["error"])
            answered += len(timed)
    return _Measured(*np.array(sums, dtype=np.float64).reshape(-1, 6).T), errors, answered


def _resampled(documents: int, config: EstimateConfig) -> Array:
    """How often each document occurs in each resample, [resamples, documents]; no resample of a single document."""
    if documents < 2:
        return np.empty((0, documents))
    random = np.random.default_rng(config.seed)
    drawn = random.multinomial(documents, np.full(documents, 1 / documents), size=config.resamples)
    return drawn.astype(np.float64)


def _totals(measured: _Measured, weights: Array, documents: int) -> dict[str, Array]:
    """Totals over all documents by resample; a failed request is taken to use what an answered one does."""
    requests = documents * (weights @ measured.requests) / max(len(measured.requests), 1)
    with np.errstate(invalid="ignore", divide="ignore"):  # a resample without an answered request is nan
        counted = weights @ measured.counted
        return {
            "requests": requests,
            "prompt": requests * (weights @ measured.prompt_tokens) / counted,
            "completion": requests * (weights @ measured.completion_tokens) / counted,
            "latency": (weights @ measured.seconds) / (weights @ measured.timed),
        }


def _bounds(drawn: Array, confidence: float) -> tuple[float, float]:
    low, high = np.nanquantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
