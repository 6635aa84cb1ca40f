"""Search the settings of a head: trials drawn by a tree-structured Parzen estimator, each cross-validated.

Trials see the training documents only. The test documents are those that `train` with the same seed and share keeps
apart: they are read, and embedded, but no trial is fitted to them, and none is scored on them. Documents are embedded
once, with all layers where trials differ in them; a trial sees the columns of its own.

A trial's figure is that of all training documents, each scored by a head fitted on other folds. Folds are alike in
their labels, and hosts, repeated texts and near-duplicates are in one fold whole. Standard errors come from resampled
hosts, the same resamples for every trial, so that differences between trials are paired.

What is drawn depends on the search's seed, the trial's number and the trials before it alone: a search that was killed
goes on with the trial that it was at, and ends with the trials of one that was not.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
import pyarrow as pa
import yaml
from loguru import logger
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.storages.journal import BaseJournalBackend
from optuna.trial import TrialState
from pydantic import BaseModel

from ml_filter.config import Settings
from ml_filter.criterion import Criterion
from ml_filter.documents.config import SourceConfig
from ml_filter.documents.manifest import Manifest, digest_of
from ml_filter.documents.output_directory import OutputDirectory
from ml_filter.errors import InputError
from ml_filter.heads.config import HeadEngine, SearchConfig, SearchSpace, TrainConfig
from ml_filter.heads.members import FOLDS, STACKED, Member, StackMember, open_member
from ml_filter.heads.search_page import search_report
from ml_filter.heads.train import KnownLabels, check_folds, check_labels, open_labels, take_up
from ml_filter.prepare.split import assign_splits
from ml_filter.progress import progress
from ml_filter.statistics.calibration import can_calibrate, fit_calibration
from ml_filter.statistics.intervals import MIN_FOR_INTERVAL, Array, Resampling, Statistic
from ml_filter.statistics.metrics import PAIR_FIGURES
from ml_filter.statistics.rounding import integer_scores, whole_scores
from ml_filter.statistics.weighted import at_threshold, rank_and_distance, table_statistic

if TYPE_CHECKING:
    from numpy.typing import NDArray

SEARCH_NAME = "search.json"
BEST_NAME = "best.yaml"
REPORT_NAME = "search.html"
_SHARD = "trials"
_STUDY = "study.jsonl"
_OUTCOME = "outcome"
_SINGLE: tuple[HeadEngine, ...] = ("encoder", "hashing", "static")
_OF_HEAD = ("kind", "balance", "learning_rate", "weight_decay")
_OF_SCORES = ("spearman", "pearson")
"""Figures of the scores themselves; the others are of whole scores."""
_CHUNK = 2_000_000
TRIAL_SCHEMA = pa.schema(
    [
        pa.field("trial", pa.int32(), nullable=False),
        pa.field("status", pa.string(), nullable=False),  # "done" or "failed"
        pa.field("value", pa.float64()),
        pa.field("standard_error", pa.float64()),
        pa.field("low", pa.float64()),
        pa.field("high", pa.float64()),
        pa.field("engine", pa.string(), nullable=False),
        pa.field("layers", pa.string()),
        pa.field("kind", pa.string()),
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
    """One try: its settings, by the names of `SearchSpace`, and its figure with standard error and 95% interval.

    A trial whose head cannot be fitted, or whose figure is undefined, has no value, and says why in `reason`. One that
    was drawn before has that trial's outcome and its number in `same_as`. Without enough hosts to resample there is no
    standard error.
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


class Spread(BaseModel):
    """A figure, or the paired difference of two, with the standard error and the 95% interval of its resamples."""

    value: float
    standard_error: float
    low: float
    high: float


class Search(BaseModel):
    """The content of search.json. The default is trial 0, the settings of `train` as they were given.

    `as_good` says whether the default is within one standard error of the best trial's figure (the rule of one
    standard error; Breiman et al. 1984); None where that cannot be told. The best of many figures is an optimistic
    one: what the head is worth, its test documents say.
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
        """What the search says of the default, in a sentence."""
        best, default = self.trials[self.best], self.trials[0]
        if best.number == 0:
            return f"the default is the best of {len(self.trials)} trials"
        if default.value is None:
            return f"the default has no figure ({default.reason}); trial {best.number} is the best"
        values = f"{PAIR_FIGURES[self.metric]} {default.value:.3f} against {best.value:.3f} of trial {best.number}"
        if self.as_good is None:
            return f"{values}; too few hosts to tell whether that is chance"
        error = f"one standard error ({best.standard_error:.3f})"
        if self.as_good:
            return f"the default is as good: {values}, less than {error} apart"
        return f"trial {best.number} is better than the default: {values}, more than {error} apart"


def search_head(
    labels: SourceConfig, config: SearchConfig, output: str | Path, documents: SourceConfig | None = None
) -> tuple[Search, Manifest]:
    """Try settings of a head and say which are the best.

    Writes each trial as a row of a shard; figures and seconds as `search.json`; the best trial's settings as
    `best.yaml`, which `ml-filter train --config` takes; and a page, `search.html`.

    Args:
        labels: documents with label columns, or a directory of aggregated scores.
        config: what is tried, how often, and by which figure; what is trained otherwise.
        output: directory or URL; `{digest}` in it stands for what is searched on what.
        documents: the documents of aggregated scores; not given: those that were annotated.

    Raises:
        InputError: labels are missing, too few, all the same or of one host, or no trial gives a figure.
        ConfigError: the encoder cannot be loaded.
    """
    train = config.train
    data = open_labels(labels, train, documents)
    with OutputDirectory(output, "search", config, data.parents) as out, ExitStack() as opened:
        if out.manifest:
            return Search.model_validate_json(out.fs.cat_file(f"{out.root}/{SEARCH_NAME}")), out.manifest
        members = _Members(config, data.criteria, opened)
        known = take_up(data, members.add, train)
        check_labels(known, data.criteria)
        judge = _Judge(config, data.criteria, known)
        logger.info(f"Trying settings on {len(judge.places):,} documents in {judge.folds} folds")
        trials = _Study(config, members, judge, out.scratch).run()
        search = Search(
            metric=config.metric,
            criteria=data.names,
            documents=len(judge.places),
            test_documents=int(known.is_test.sum()),
            unlabelled=data.unlabelled,
            folds=judge.folds,
            groups=judge.groups,
            trials=trials,
            **_comparison(trials, judge, out.scratch),
        )
        return search, _written(search, config, out)


def _comparison(trials: Sequence[Trial], judge: _Judge, scratch: Path) -> dict[str, Any]:
    """The best trial, and how the default compares with it."""
    ranked = ranking(trials)
    if not ranked:
        raise InputError(f"no trial of {len(trials)} has a figure: {trials[0].reason}")
    best, default = ranked[0], trials[0]
    found: dict[str, Any] = {"best": best.number, "difference": None, "as_good": None}
    if best.number and best.value is not None and default.value is not None and best.standard_error is not None:
        figures = [judge.figures(np.load(_rated(scratch, one.number))) for one in (best, default)]
        found["difference"] = _spread(figures[0] - figures[1])
        found["as_good"] = best.value - default.value <= best.standard_error
    return found


def ranking(trials: Sequence[Trial]) -> list[Trial]:
    """The trials that have a value, each setting once, the best first; of equal ones the earlier."""
    tried = [trial for trial in trials if trial.value is not None and trial.same_as is None]
    return sorted(tried, key=lambda trial: -(trial.value or 0.0))


def _written(search: Search, config: SearchConfig, out: OutputDirectory) -> Manifest:
    best = search.trials[search.best]
    settings = yaml.safe_dump(config_of(config.train, best.settings).model_dump(mode="json"), sort_keys=False)
    said = f"# The best of {len(search.trials)} trials by {search.metric}: trial {best.number}, {best.value:.4f}.\n"
    out.put_bytes(BEST_NAME, (said + settings).encode())
    out.put_bytes(SEARCH_NAME, (search.model_dump_json(indent=1) + "\n").encode())
    out.put_bytes(REPORT_NAME, search_report(search).encode())
    with out.new_shard(_SHARD, TRIAL_SCHEMA) as writer, out.new_rejects(_SHARD) as rejects:
        writer.write(pa.Table.from_pylist([_row(trial) for trial in search.trials], schema=TRIAL_SCHEMA))
    counts = {
        "trials": len(search.trials),
        "failed": sum(trial.value is None for trial in search.trials),
        "documents": search.documents,
        "test_documents": search.test_documents,
        "unlabelled": search.unlabelled,
    }
    return out.finish([(_SHARD, out.commit(_SHARD, writer, rejects, counts))])


def _row(trial: Trial) -> dict[str, Any]:
    said = trial.model_dump(exclude={"number", "settings", "seconds"}) | trial.settings
    status = "failed" if trial.value is None else "done"
    layers = str(trial.settings["layers"]) if "layers" in trial.settings else None
    return {**dict.fromkeys(TRIAL_SCHEMA.names), **said, "trial": trial.number, "status": status, "layers": layers}


# --- What is tried ---------------------------------------------------------------------------------------------------


def chosen_settings(choose: Callable[[str], Any]) -> dict[str, Any]:
    """The settings that bear on a head, by the names of `SearchSpace`, each asked for when those before it need it."""
    made = {"engine": choose("engine")}
    if made["engine"] in ("encoder", "stack"):
        made |= {"layers": choose("layers"), "kind": choose("kind")}
        if made["kind"] == "kernel":
            made["landmarks"] = choose("landmarks")
        else:
            made["task"] = choose("task")
        if made["kind"] == "mlp":
            made["width"] = choose("width")
        if made["kind"] == "mlp" or made.get("task", "regression") != "regression":
            made |= {"learning_rate": choose("learning_rate"), "weight_decay": choose("weight_decay")}
    return {**made, "balance": choose("balance")}


def settings_of(config: TrainConfig) -> dict[str, Any]:
    """The settings of a configuration, as `chosen_settings` gives those of a trial."""
    known = {"engine": config.engine, "layers": config.layers, **config.head.model_dump()}
    return chosen_settings(lambda name: known["size" if name in ("landmarks", "width") else name])


def config_of(base: TrainConfig, settings: Mapping[str, Any]) -> TrainConfig:
    """The configuration with a trial's settings in the place of its own."""
    head = base.head.model_dump() | {name: settings[name] for name in _OF_HEAD if name in settings}
    if "kind" in settings:
        head["task"] = settings.get("task", "regression")
        head["size"] = settings.get("landmarks", settings.get("width", head["size"]))
    layers = settings.get("layers", base.layers)
    return TrainConfig.model_validate(
        base.model_dump() | {"engine": settings["engine"], "layers": layers, "head": head}
    )


class _Members:
    """A member for each engine that is tried, with the layers of the trial that sees most."""

    def __init__(self, config: SearchConfig, criteria: Sequence[Criterion], opened: ExitStack) -> None:
        train, space = config.train, config.space
        tried = {train.engine, *space.engine}
        layers = {train.layers, *space.layers}
        widest = train.model_copy(update={"layers": layers.pop() if len(layers) == 1 else "all"})
        needed = [e for e in _SINGLE if e in tried or ("stack" in tried and e in STACKED)]
        self._members: dict[HeadEngine, Member] = {
            engine: opened.enter_context(
                open_member(widest.model_copy(update={"engine": engine}), criteria, Settings().embedding_dir)
            )
            for engine in needed
        }

    def add(self, texts: Sequence[str]) -> None:
        """Take up the next documents."""
        for member in self._members.values():
            member.add(texts)

    def of(self, config: TrainConfig) -> Member:
        """The member of a configuration, with all documents."""
        if config.engine == "stack":
            return StackMember(config, [self._members[engine] for engine in STACKED]).with_settings(config)
        return self._members[config.engine].with_settings(config)


# --- How it is judged ------------------------------------------------------------------------------------------------


class _Judge:
    """Cross-validates heads on the training documents: the same folds and resamples for each."""

    def __init__(self, config: SearchConfig, criteria: Sequence[Criterion], known: KnownLabels) -> None:
        self._config, self._criteria = config, list(criteria)
        self.places = np.flatnonzero(~known.is_test)
        self._labels, self._weights = known.labels[self.places], known.weights[self.places]
        numbers, self._group_of = np.unique(known.groups[self.places], return_inverse=True)
        self.groups = len(numbers)
        classes = np.floor(np.nanmean(self._labels, axis=1) + 0.5).astype(np.int64)
        self._folds = assign_splits(self._group_of, classes, known.groups[self.places], [1 / FOLDS] * FOLDS)
        self.folds = len(np.unique(self._folds))
        if self.folds < 2:
            raise InputError(
                "all labelled documents are of one host, or nearly the same: a search needs labels of several"
            )
        check_folds(self._labels, self._folds, self._criteria)

    def rate(self, member: Member) -> NDArray[np.float64]:
        """What the figure is about, [documents, criteria]: scores, or whole scores, by heads fitted on other folds.

        A whole score is that of a calibration that was fitted to the other folds' scores, or the score rounded.
        """
        made = member.cross_fit(self.places, self._labels, self._weights, self._folds)
        for place, criterion in enumerate(self._criteria):
            made[:, place] = np.clip(made[:, place], criterion.low, criterion.high)
            if self._config.metric not in _OF_SCORES and np.isfinite(made).all():
                made[:, place] = self._whole(made[:, place], place)
        return made

    def _whole(self, scores: NDArray[np.float64], place: int) -> NDArray[np.float64]:
        criterion, method = self._criteria[place], self._config.train.calibration
        labels = self._labels[:, place]
        whole = integer_scores(scores, criterion.low, criterion.high)
        for fold in np.unique(self._folds):
            inside = self._folds == fold
            others = ~inside & ~np.isnan(labels)
            if method is not None and can_calibrate(labels[others], criterion):
                calibration = fit_calibration(
                    scores[others],
                    labels[others],
                    criterion,
                    fitted_on="the other folds",
                    method=method,
                    resampling=Resampling(resamples=1),  # nobody looks at its table
                )
                assert calibration is not None
                whole[inside] = calibration.integer_scores(scores[inside])
        return whole.astype(np.float64)

    def figures(self, rated: NDArray[np.float64]) -> Array:
        """The figure of what `rate` gave, and after it that of each resample: [1 + resamples], nan: undefined."""
        made: Array = np.mean([self._figures(rated, place) for place in range(len(self._criteria))], axis=0)
        return made

    def _figures(self, rated: NDArray[np.float64], place: int) -> Array:
        from scipy.sparse import csr_matrix

        there = np.flatnonzero(~np.isnan(self._labels[:, place]))
        statistic, rows = self._statistic(self._labels[there, place], rated[there, place], self._criteria[place])
        distinct, row_of = np.unique(rows, axis=0, return_inverse=True)
        occurs = csr_matrix((np.ones(len(there)), (there, row_of)), shape=(len(rated), len(distinct)))
        return np.concatenate(
            [statistic(distinct, weights @ occurs)[self._config.metric] for weights in self._resamples()]
        )

    def _statistic(self, labels: Array, rated: Array, criterion: Criterion) -> tuple[Statistic, Array]:
        """The statistic that has the figure, and its rows (label, rated)."""
        if self._config.metric in _OF_SCORES:
            return rank_and_distance, np.column_stack([labels, rated])
        rows = np.column_stack([integer_scores(labels, criterion.low, criterion.high), rated])
        if self._config.metric.endswith("_at_threshold"):
            return at_threshold, (rows >= criterion.threshold).astype(np.float64)
        span = np.array(whole_scores(criterion.low, criterion.high), np.float64)
        return table_statistic(span), rows

    def _resamples(self) -> Iterator[Array]:
        """How often each document occurs, [resamples, documents] in parts: once, then as its host or group is drawn."""
        yield np.ones((1, len(self.places)))
        random = np.random.default_rng(0)
        drawn = self._config.resamples if self.groups >= MIN_FOR_INTERVAL else 0
        step = max(1, _CHUNK // len(self.places))
        for first in range(0, drawn, step):
            size = min(step, drawn - first)
            times = random.multinomial(self.groups, np.full(self.groups, 1 / self.groups), size=size)
            yield times[:, self._group_of].astype(np.float64)


def _spread(figures: Array) -> Spread | None:
    """A figure and its resamples, as `figures` gives them; None where most of them are undefined.

    The interval is widened to the figure where the percentiles leave that out.
    """
    drawn = figures[1:][np.isfinite(figures[1:])]
    if len(drawn) < max(2, (len(figures) - 1) / 2):
        return None
    value, (low, high) = float(figures[0]), np.quantile(drawn, [0.025, 0.975]).tolist()
    return Spread(value=value, standard_error=float(drawn.std(ddof=1)), low=min(low, value), high=max(high, value))


# --- The trials ------------------------------------------------------------------------------------------------------


class _Study:
    """The trials of a search, kept in optuna's journal, and in files beside it what each of them rated."""

    def __init__(self, config: SearchConfig, members: _Members, judge: _Judge, directory: Path) -> None:
        self._config, self._members, self._judge, self._directory = config, members, judge, directory
        self._study = _open_study(directory / _STUDY)

    def run(self) -> list[Trial]:
        """All trials, those of an earlier run as they were."""
        kept = [one.user_attrs.get(_OUTCOME) for one in self._study.get_trials(deepcopy=False)]
        trials = [Trial.model_validate(outcome) for outcome in kept if outcome is not None]
        with progress("Trying settings", self._config.trials) as bar:
            bar.advance(len(trials))
            while len(trials) < self._config.trials:
                trials.append(self._next(trials))
                bar.advance()
        return trials

    def _next(self, trials: list[Trial]) -> Trial:
        number, space = len(trials), self._config.space
        if number == 0:
            made = self._try(0, settings_of(self._config.train), trials)
            self._study.add_trial(_default_trial(made, space))
            return made
        # Of a seed of its own for each trial: what is drawn is the same whether or not a run was killed before.
        seed = int(digest_of([self._config.seed, number])[:8], 16)
        self._study.sampler = optuna.samplers.TPESampler(seed=seed, multivariate=False, constant_liar=False)
        asked = self._study.ask()
        made = self._try(number, chosen_settings(lambda name: _drawn(asked, space, name)), trials)
        asked.set_user_attr(_OUTCOME, made.model_dump(mode="json"))
        _tell(self._study, asked.number, made)
        return made

    def _try(self, number: int, settings: dict[str, Any], trials: list[Trial]) -> Trial:
        for earlier in trials:
            if earlier.settings == settings:
                same_as = earlier.number if earlier.same_as is None else earlier.same_as
                return earlier.model_copy(update={"number": number, "seconds": 0.0, "same_as": same_as})
        started = time.perf_counter()
        made = Trial(number=number, settings=settings, seconds=0)
        try:
            rated = self._judge.rate(self._members.of(config_of(self._config.train, settings)))
        except (np.linalg.LinAlgError, InputError) as error:
            made.reason = f"the head cannot be fitted: {error}"
        else:
            self._take(made, rated)
        made.seconds = time.perf_counter() - started
        logger.debug(f"Trial {number}: {made.reason or made.value} with {settings}")
        return made

    def _take(self, made: Trial, rated: NDArray[np.float64]) -> None:
        """Put the figure of what was rated into the trial, and keep what was rated for the comparison at the end."""
        figures = self._judge.figures(rated) if np.isfinite(rated).all() else np.array([np.nan])
        if not np.isfinite(figures[0]):
            made.reason = f"{PAIR_FIGURES[self._config.metric]} is undefined on these labels and the head's scores"
            return
        made.value = float(figures[0])
        if (spread := _spread(figures)) is not None:
            made.standard_error, made.low, made.high = spread.standard_error, spread.low, spread.high
        path = _rated(self._directory, made.number)
        with path.with_suffix(".tmp").open("wb") as file:
            np.save(file, rated)
        os.replace(path.with_suffix(".tmp"), path)


def _rated(directory: Path, number: int) -> Path:
    return directory / f"rated-{number}.npy"


def _drawn(trial: optuna.Trial, space: SearchSpace, name: str) -> Any:
    """The value of a setting that a trial draws; numbers of a range with two digits."""
    values = getattr(space, name)
    if isinstance(values, list):
        return trial.suggest_categorical(name, values)
    return float(f"{trial.suggest_float(name, *values, log=name != 'balance'):.2g}")


def _default_trial(made: Trial, space: SearchSpace) -> optuna.trial.FrozenTrial:
    """The default as optuna knows a trial: with those of its settings that are in the space."""
    known: dict[str, BaseDistribution] = {}
    for name, value in made.settings.items():
        values = getattr(space, name)
        if isinstance(values, list) and value in values:
            known[name] = CategoricalDistribution(values)
        elif isinstance(values, tuple) and values[0] <= value <= values[1]:
            known[name] = FloatDistribution(values[0], values[1], log=name != "balance")
    return optuna.trial.create_trial(
        state=TrialState.FAIL if made.value is None else TrialState.COMPLETE,
        value=_told(made),
        params={name: made.settings[name] for name in known},
        distributions=known,
        user_attrs={_OUTCOME: made.model_dump(mode="json")},
    )


def _tell(study: optuna.Study, number: int, made: Trial | None) -> None:
    value = None if made is None else _told(made)
    study.tell(number, value, state=TrialState.FAIL if value is None else TrialState.COMPLETE)


def _told(made: Trial) -> float | None:
    """The figure that the next trials are drawn by: without the last bits, in which machines may differ."""
    return None if made.value is None else round(made.value, 6)


class _Journal(BaseJournalBackend):
    """Optuna's journal in a file of lines, for one process: the output directory is locked."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.touch()
        os.truncate(path, path.read_bytes().rfind(b"\n") + 1)  # a line that a killed run did not finish

    def read_logs(self, log_number_from: int) -> list[dict[str, Any]]:
        """The entries from a number on."""
        return [json.loads(line) for line in self._path.read_bytes().splitlines()[log_number_from:]]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Add entries; they are on disk on return."""
        with self._path.open("ab") as file:
            file.write(b"".join(json.dumps(entry).encode() + b"\n" for entry in logs))
            file.flush()
            os.fsync(file.fileno())


def _open_study(path: Path) -> optuna.Study:
    """The study, without what a killed run was at: that trial is drawn again, if its outcome was not written yet."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = optuna.storages.JournalStorage(_Journal(path))
    study = optuna.create_study(storage=storage, study_name="search", direction="maximize", load_if_exists=True)
    for left in study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
        outcome = left.user_attrs.get(_OUTCOME)
        _tell(study, left.number, None if outcome is None else Trial.model_validate(outcome))
    return study
