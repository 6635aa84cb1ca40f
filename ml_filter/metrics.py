"""Figures of latency, and Prometheus metrics of batch runs: a text file for the node exporter, or a push gateway.

A batch run is not there to be scraped, so it writes its metrics itself, every few seconds and at its end. A metric that
cannot be delivered is a warning in the log and never an error.
"""

from __future__ import annotations

import math
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from loguru import logger

from ml_filter.config import Settings

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric

FIGURES = "figures"
"""The entry of a manifest's `made_with` with the figures of an annotator: latency, tokens per second, USD."""
_STEP = math.log(1.01)
_GATEWAY_TIMEOUT_S = 5.0
_METRICS = {
    "annotation_answers": ("counter", "Answers of the LLM in this run, by status"),
    "annotation_tokens": ("counter", "Tokens used in this run, by kind"),
    "annotation_usd": ("counter", "Cost of this run in USD, if prices are set"),
    "annotation_in_flight": ("gauge", "Requests that are waiting for an answer"),
    "annotation_latency_seconds": ("gauge", "Seconds from request to answer, by quantile"),
    "scoring_documents": ("counter", "Documents scored by this run"),
    "scoring_shards": ("gauge", "Shards of the corpus, by state"),
    "run_started_timestamp_seconds": ("gauge", "When the run began"),
    "run_finished_timestamp_seconds": ("gauge", "When the run ended; 0 while it runs"),
    "run_failed": ("gauge", "1 if the run ended with an error"),
}
"""All metrics by name, without the prefix `ml_filter_`: type and help."""


class Sample(NamedTuple):
    """A value of one of the metrics, and its labels."""

    name: str
    value: float
    labels: Mapping[str, str] = {}


class Latencies:
    """Seconds that answers took, to a percent, in memory that does not grow with their number."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()
        self._seconds, self._tokens = 0.0, 0

    def add(self, seconds: float | None, completion_tokens: int | None = None) -> None:
        """Count an answer. One whose time or tokens are not known does not count for the figure that needs it."""
        if seconds is None or seconds <= 0:
            return
        self._counts[round(math.log(seconds) / _STEP)] += 1
        if completion_tokens:
            self._seconds += seconds
            self._tokens += completion_tokens

    def quantile(self, share: float) -> float | None:
        """The seconds within which this share of the answers came; None: no answers."""
        wanted = math.ceil(share * self._counts.total())
        for step in sorted(self._counts):
            wanted -= self._counts[step]
            if wanted <= 0:
                return math.exp(step * _STEP)
        return None

    def figures(self) -> dict[str, float]:
        """The figures that are known: `latency_p50_s`, `latency_p95_s`, and `tokens_per_second` of one request."""
        p50, p95 = self.quantile(0.5), self.quantile(0.95)
        rate = self._tokens / self._seconds if self._seconds else None
        values = {"latency_p50_s": p50, "latency_p95_s": p95, "tokens_per_second": rate}
        return {name: float(f"{value:.4g}") for name, value in values.items() if value is not None}


@contextmanager
def exported(
    job: str, labels: Mapping[str, str], samples: Callable[[], Sequence[Sample]], settings: Settings | None = None
) -> Iterator[None]:
    """Deliver metrics of a run while it runs and at its end, if the settings name a directory or a gateway.

    Args:
        job: `annotation` or `scoring`.
        labels: of all samples; they tell runs apart that are at work at the same time.
        samples: called for the values, from another thread.
    """
    settings = settings or Settings()
    if settings.metrics_directory is None and settings.metrics_gateway is None:
        yield
        return
    exporter = _Exporter(job, labels, samples, settings)
    over = threading.Event()

    def write_until_over() -> None:
        while not over.wait(settings.metrics_every_s):
            exporter.deliver()

    exporter.deliver()
    thread = threading.Thread(target=write_until_over, name="metrics", daemon=True)
    thread.start()
    failed = True
    try:
        yield
        failed = False
    finally:
        over.set()
        thread.join()
        exporter.finished, exporter.failed = time.time(), failed
        exporter.deliver()


class _Exporter:
    def __init__(
        self, job: str, labels: Mapping[str, str], samples: Callable[[], Sequence[Sample]], settings: Settings
    ) -> None:
        from prometheus_client import CollectorRegistry

        self.job, self.labels, self._samples, self._settings = job, dict(labels), samples, settings
        self._started, self.finished, self.failed = time.time(), 0.0, False
        self._has_warned = False
        self.registry: CollectorRegistry = CollectorRegistry()
        self.registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """The metrics, as prometheus_client asks for them."""
        from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily

        own = [
            Sample("run_started_timestamp_seconds", self._started),
            Sample("run_finished_timestamp_seconds", self.finished),
            Sample("run_failed", float(self.failed)),
        ]
        families: dict[str, CounterMetricFamily | GaugeMetricFamily] = {}
        for sample in [*self._samples(), *own]:
            labels = {"job_name": self.job, **self.labels, **sample.labels}
            if sample.name not in families:
                kind, text = _METRICS[sample.name]
                family = CounterMetricFamily if kind == "counter" else GaugeMetricFamily
                families[sample.name] = family(f"ml_filter_{sample.name}", text, labels=list(labels))
            families[sample.name].add_metric(list(labels.values()), sample.value)
        yield from families.values()

    def deliver(self) -> None:
        """Write and push; what does not succeed is reported once."""
        from prometheus_client import pushadd_to_gateway, write_to_textfile

        try:
            if self._settings.metrics_directory is not None:
                write_to_textfile(str(self._settings.metrics_directory / self._file_name), self.registry)
            if self._settings.metrics_gateway is not None:
                pushadd_to_gateway(
                    self._settings.metrics_gateway,
                    job=f"ml_filter_{self.job}",
                    registry=self.registry,
                    grouping_key=self.labels,
                    timeout=_GATEWAY_TIMEOUT_S,
                )
        except Exception as error:  # the metrics of a run must not end it
            if not self._has_warned:
                logger.warning(f"Metrics cannot be delivered ({type(error).__name__}: {error}); the run goes on")
            self._has_warned = True

    @property
    def _file_name(self) -> Path:
        name = "-".join([self.job, *self.labels.values()])
        return Path(f"ml_filter_{re.sub(r'[^A-Za-z0-9._-]+', '-', name)}.prom")
