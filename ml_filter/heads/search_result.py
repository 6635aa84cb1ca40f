"""The result of a search: its trials, how the default compares with the best of them, and the page that shows both."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from operator import itemgetter
from typing import Any

import pyarrow as pa
from pydantic import BaseModel

from ml_filter.rendering.html import render
from ml_filter.rendering.plots import interval_plot, setting_panels, trial_series
from ml_filter.statistics.metrics import PAIR_FIGURES

_LOGARITHMIC = ("learning_rate", "weight_decay")
_KIND_SETTINGS = ("kind", "model", "task")

TRIAL_SCHEMA = pa.schema(
    [
        pa.field("trial", pa.int32(), nullable=False),
        pa.field("status", pa.string(), nullable=False),  # "done" or "failed"
        pa.field("value", pa.float64()),
        pa.field("standard_error", pa.float64()),
        pa.field("low", pa.float64()),
        pa.field("high", pa.float64()),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("layers", pa.string()),
        pa.field("model", pa.string()),
        pa.field("task", pa.string()),
        pa.field("landmarks", pa.int32()),
        pa.field("width", pa.int32()),
        pa.field("balance", pa.float64(), nullable=False),
        pa.field("learning_rate", pa.float64()),
        pa.field("weight_decay", pa.float64()),
        pa.field("same_as", pa.int32()),
        pa.field("reason", pa.string()),
    ]
)


class Trial(BaseModel):
    """Settings, by the names of `SearchSpace`, and their figure with standard error and 95% interval.

    A trial whose head cannot be fitted, or whose figure is undefined, has no value but a `reason`. A trial with the
    settings of an earlier one repeats its result and has its number in `same_as`. With too few hosts to resample
    the standard error is undefined.
    """

    number: int
    settings: dict[str, str | int | float]
    value: float | None = None
    standard_error: float | None = None
    low: float | None = None
    high: float | None = None
    seconds: float
    same_as: int | None = None
    reason: str | None = None

    @property
    def interval(self) -> tuple[float, float, float] | None:
        """Value, lower and upper bound; without an interval, the value three times."""
        if self.value is None:
            return None
        return self.value, self.value if self.low is None else self.low, self.value if self.high is None else self.high

    def row(self) -> dict[str, Any]:
        """The trial as a row of `TRIAL_SCHEMA`."""
        row = dict.fromkeys(TRIAL_SCHEMA.names) | self.model_dump(include=set(TRIAL_SCHEMA.names)) | self.settings
        if "layers" in self.settings:
            row["layers"] = str(self.settings["layers"])
        return row | {"trial": self.number, "status": "failed" if self.value is None else "done"}


class Spread(BaseModel):
    """A figure, or the paired difference of two, with the standard error and 95% interval of its resamples."""

    value: float
    standard_error: float
    low: float
    high: float


class Search(BaseModel):
    """The content of search.json. Trial 0 is the default: the settings of `train` as they were given.

    `as_good` says whether the default is within one standard error of the best trial's figure (the one-standard-error
    rule; Breiman et al. 1984); None: unknown. The best of many figures is an optimistic estimate: evaluate the head on
    its test documents.
    """

    metric: str
    criteria: list[str]
    documents: int
    test_documents: int
    unlabelled: int
    folds: int
    groups: int
    trials: list[Trial]
    best: int
    difference: Spread | None
    as_good: bool | None

    @property
    def verdict(self) -> str:
        """How the default compares with the best trial, in a sentence."""
        best, default = self.trials[self.best], self.trials[0]
        if best.number == 0:
            return f"the default is the best of {len(self.trials)} trials"
        if default.value is None:
            return f"the default has no figure ({default.reason}); trial {best.number} is the best"
        values = f"{PAIR_FIGURES[self.metric]} {default.value:.3f} against {best.value:.3f} of trial {best.number}"
        if self.as_good is None:
            return f"{values}; too few hosts to rule out chance"
        error = f"one standard error ({best.standard_error:.3f})"
        if self.as_good:
            return f"the default is as good: {values}, less than {error} apart"
        return f"trial {best.number} is better than the default: {values}, more than {error} apart"


def ranking(trials: Sequence[Trial]) -> list[Trial]:
    """The trials that have a value, without repeated settings, the best first; of equal ones the earlier first."""
    return [trial for trial in _best_first(trials) if trial.value is not None and trial.same_as is None]


def _best_first(trials: Sequence[Trial]) -> list[Trial]:
    return sorted(trials, key=lambda trial: -math.inf if trial.value is None else trial.value, reverse=True)


def search_plots(search: Search) -> dict[str, str]:
    """SVG texts by name: `trials`, `kinds` (the best trial of each kind of head), and `settings` if any vary."""
    title = PAIR_FIGURES[search.metric]
    trials_by_kind = defaultdict(list)
    by_kind = defaultdict(list)
    by_setting = defaultdict(list)
    for trial in search.trials:
        if trial.interval is not None:
            trials_by_kind[str(trial.settings["kind"])].append((trial.number, *trial.interval))
            kind = ", ".join(str(trial.settings[name]) for name in _KIND_SETTINGS if name in trial.settings)
            by_kind[kind].append(trial.interval)
            for name, value in trial.settings.items():
                by_setting[name].append((value, trial.interval[0]))
    best_of_kind = [
        (f"{kind} (n={len(intervals)})", *max(intervals, key=itemgetter(0))) for kind, intervals in by_kind.items()
    ]
    plots = {
        "trials": trial_series(trials_by_kind, ylabel=title),
        "kinds": interval_plot(
            sorted(best_of_kind, key=itemgetter(1), reverse=True),
            xlabel=f"{title}, the best trial of each",
            reference=search.trials[0].value,
        ),
    }
    varied = {name: pairs for name, pairs in by_setting.items() if len({value for value, _ in pairs}) > 1}
    if varied:
        plots["settings"] = setting_panels(varied, ylabel=title, logarithmic=_LOGARITHMIC)
    return plots


def search_report(search: Search) -> str:
    """HTML with the verdict, the plots, and every trial, the best first."""
    return render(
        "heads/templates/search.html",
        s=search,
        title=PAIR_FIGURES[search.metric],
        plots=search_plots(search),
        trials=_best_first(search.trials),
        names=list(dict.fromkeys(name for trial in search.trials for name in trial.settings)),
    )
