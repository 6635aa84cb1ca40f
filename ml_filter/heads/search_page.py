"""The page of a search: what was tried, and how the default compares with the best trial."""

from __future__ import annotations

from collections import defaultdict

from ml_filter.heads.search_result import Search, Trial
from ml_filter.rendering.html import render
from ml_filter.rendering.plots import interval_plot, setting_panels, trial_series
from ml_filter.statistics.metrics import PAIR_FIGURES

_LOGARITHMIC = ("learning_rate", "weight_decay")
_KIND_SETTINGS = ("kind", "model", "task")


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
