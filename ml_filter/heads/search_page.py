"""The page that shows what a search of a head's settings tried, and what came of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ml_filter.rendering.html import render
from ml_filter.rendering.plots import interval_plot, setting_panels, trial_series

if TYPE_CHECKING:
    from ml_filter.heads.search import Search, Trial

_LOGARITHMIC = ("learning_rate", "weight_decay")
_KIND = ("engine", "kind", "task")


def search_plots(search: Search) -> dict[str, str]:
    """SVG texts by name: `trials`, `kinds` (the best of each kind of head), and `settings`, where any were varied."""
    from ml_filter.statistics.metrics import PAIR_FIGURES

    title = PAIR_FIGURES[search.metric]
    known = [trial for trial in search.trials if trial.value is not None]
    by_engine: dict[str, list[tuple[int, float, float, float]]] = {}
    for trial in known:
        by_engine.setdefault(str(trial.settings["engine"]), []).append((trial.number, *_triple(trial)))
    plots = {
        "trials": trial_series(by_engine, ylabel=title),
        "kinds": interval_plot(
            [(f"{kind} (n={len(of)})", *_triple(max(of, key=_value))) for kind, of in _by_kind(known)],
            xlabel=f"{title}, the best trial of each",
            reference=search.trials[0].value,
        ),
    }
    settings: dict[str, list[tuple[str | float, float]]] = {}
    for trial in known:
        for name, value in trial.settings.items():
            settings.setdefault(name, []).append((value, _value(trial)))
    varied = {name: pairs for name, pairs in settings.items() if len({value for value, _ in pairs}) > 1}
    if varied:
        plots["settings"] = setting_panels(varied, ylabel=title, logarithmic=_LOGARITHMIC)
    return plots


def search_report(search: Search) -> str:
    """HTML with what the search says of the default, the plots, and every trial, the best first."""
    from ml_filter.statistics.metrics import PAIR_FIGURES

    trials = sorted(search.trials, key=lambda trial: (trial.value is None, -(trial.value or 0), trial.number))
    return render(
        "heads/templates/search.html",
        s=search,
        title=PAIR_FIGURES[search.metric],
        plots=search_plots(search),
        trials=trials,
        names=list(dict.fromkeys(name for trial in search.trials for name in trial.settings)),
    )


def head_kind(trial: Trial) -> str:
    """The kind of head of a trial in words, such as `encoder, mlp, ordinal`."""
    return ", ".join(str(trial.settings[name]) for name in _KIND if name in trial.settings)


def _by_kind(trials: list[Trial]) -> list[tuple[str, list[Trial]]]:
    """The trials of each kind of head, the kind with the best one first."""
    found: dict[str, list[Trial]] = {}
    for trial in trials:
        found.setdefault(head_kind(trial), []).append(trial)
    return sorted(found.items(), key=lambda of: -max(map(_value, of[1])))


def _value(trial: Trial) -> float:
    assert trial.value is not None
    return trial.value


def _triple(trial: Trial) -> tuple[float, float, float]:
    """A figure with its interval, or with one of no width where it has none."""
    value = _value(trial)
    return value, value if trial.low is None else trial.low, value if trial.high is None else trial.high
