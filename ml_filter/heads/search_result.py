"""The result of a search: its trials, how the default compares with the best of them, and the page that shows both."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
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
    there is no standard error.
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
    ranked = [trial for trial in trials if trial.value is not None and trial.same_as is None]
    return sorted(ranked, key=lambda trial: -(trial.value or 0.0))


def search_plots(search: Search) -> dict[str, str]:
    """SVG texts by name: `trials`, `kinds` (the best trial of each kind of head), and `settings` if any vary."""
    title = PAIR_FIGURES[search.metric]
    rated = [trial for trial in search.trials if trial.value is not None]
    trials_by_kind = defaultdict(list)
    by_kind = defaultdict(list)
    by_setting = defaultdict(list)
    for trial in rated:
        trials_by_kind[str(trial.settings["kind"])].append((trial.number, *_interval(trial)))
        by_kind[_kind_of_head(trial)].append(trial)
        for name, value in trial.settings.items():
            by_setting[name].append((value, _value(trial)))
    best_of_kind = [(f"{kind} (n={len(trials)})", max(trials, key=_value)) for kind, trials in by_kind.items()]
    best_of_kind.sort(key=lambda named: -_value(named[1]))
    plots = {
        "trials": trial_series(trials_by_kind, ylabel=title),
        "kinds": interval_plot(
            [(name, *_interval(trial)) for name, trial in best_of_kind],
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
    trials = sorted(search.trials, key=lambda trial: (trial.value is None, -(trial.value or 0), trial.number))
    return render(
        "heads/templates/search.html",
        s=search,
        title=PAIR_FIGURES[search.metric],
        plots=search_plots(search),
        trials=trials,
        names=list(dict.fromkeys(name for trial in search.trials for name in trial.settings)),
    )


def _kind_of_head(trial: Trial) -> str:
    """Such as `encoder, mlp, ordinal`."""
    return ", ".join(str(trial.settings[name]) for name in _KIND_SETTINGS if name in trial.settings)


def _value(trial: Trial) -> float:
    assert trial.value is not None
    return trial.value


def _interval(trial: Trial) -> tuple[float, float, float]:
    """Value, lower and upper bound; without an interval, the value three times."""
    value = _value(trial)
    return value, value if trial.low is None else trial.low, value if trial.high is None else trial.high
