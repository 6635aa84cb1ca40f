"""Search the settings of a head: trials from a tree-structured Parzen estimator, each cross-validated.

Trials see the training documents only, not the test documents, which are those of `train` with the same seed and share.
Documents are embedded once, with all layers if trials differ in them.

The draws of a trial depend on the search's seed, its number and the results before it. So a search that was killed
resumes with the trial that was running, and ends with the same trials as an undisturbed one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
import pyarrow as pa
import yaml
from loguru import logger
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from ml_filter.config import Settings
from ml_filter.criterion import Criterion
from ml_filter.documents.config import SourceConfig
from ml_filter.documents.manifest import PROGRESS_NAME, Manifest, digest_of
from ml_filter.documents.output_directory import OutputDirectory
from ml_filter.documents.result import read_result
from ml_filter.errors import InputError
from ml_filter.heads.config import HeadKind, SearchConfig, TrainConfig
from ml_filter.heads.cross_validation import CrossValidation
from ml_filter.heads.kinds import Trainer, create_trainer
from ml_filter.heads.kinds.stack import MEMBERS, StackTrainer
from ml_filter.heads.labels import LabelledDocuments, check_labels, read_label_table
from ml_filter.heads.search_result import TRIAL_SCHEMA, Search, Spread, Trial, ranking, search_report
from ml_filter.progress import progress
from ml_filter.statistics.metrics import PAIR_FIGURES

if TYPE_CHECKING:
    from ml_filter.statistics.intervals import Array

_Trainers = dict[HeadKind, Trainer]

SEARCH_NAME = "search.json"
BEST_NAME = "best.yaml"
REPORT_NAME = "search.html"
STUDY_NAME = "study.jsonl"
_SHARD = "trials"
_RESULT, _FIGURES = "result", "figures"
"""Attributes of a trial in the study: the `Trial`, and its figure with all resamples."""
_FIELDS = {"landmarks": "size", "width": "size"}
"""The field of `HeadSettings` for a setting of another name."""


def search_head(
    labels: SourceConfig, config: SearchConfig, output: str | Path, documents: SourceConfig | None = None
) -> tuple[Search, Manifest]:
    """Try settings of a head and report the best.

    Writes the trials as rows of a shard, `search.json`, a page, `search.html`, and the settings of the best trial as
    `best.yaml` for `ml-filter train --config`.

    Args:
        labels: documents with label columns, or a directory of aggregated scores.
        config: search space, number of trials, metric; `train` has the default and all settings outside the space.
        output: directory or URL; `{digest}` in it stands for settings and input.
        documents: the documents of aggregated scores (default: those that were annotated).

    Raises:
        InputError: labels are missing, too few, identical or from one host, or no trial has a figure.
        ConfigError: the encoder cannot be loaded.
    """
    data = LabelledDocuments(labels, config.train, documents)
    with OutputDirectory(output, "search", config, data.parents) as out, ExitStack() as stack:
        if out.manifest:
            return read_result(out.manifest, SEARCH_NAME, Search, "ml-filter search"), out.manifest
        trainers, opened = _open_trainers(config, data.criteria, stack)
        table = read_label_table(data, [trainer.add for trainer in opened], config.train)
        check_labels(table, data.criteria)
        validation = CrossValidation(config, data.criteria, table)
        logger.info(f"Trying settings on {len(validation.rows):,} documents in {validation.folds} folds")
        results = _run_trials(config, trainers, validation, out)
        search = Search(
            metric=config.metric,
            criteria=data.names,
            documents=len(validation.rows),
            test_documents=int(table.is_test.sum()),
            unlabelled=data.unlabelled,
            folds=validation.folds,
            groups=validation.groups,
            trials=[trial for trial, _ in results],
            **_compare_with_default(results),
        )
        return search, _write(search, config, out)


def _compare_with_default(results: Sequence[tuple[Trial, Array]]) -> dict[str, Any]:
    """The fields `best`, `difference` and `as_good` of a `Search`."""
    default = results[0][0]
    ranked = ranking([trial for trial, _ in results])
    if not ranked:
        raise InputError(f"no trial of {len(results)} has a figure: {default.reason}")
    best = ranked[0]
    comparison: dict[str, Any] = {"best": best.number, "difference": None, "as_good": None}
    if best.number and best.value is not None and default.value is not None and best.standard_error is not None:
        comparison["difference"] = _spread(results[best.number][1] - results[0][1])
        comparison["as_good"] = best.value - default.value <= best.standard_error
    return comparison


def _write(search: Search, config: SearchConfig, out: OutputDirectory) -> Manifest:
    best = search.trials[search.best]
    settings = yaml.safe_dump(config_of(config.train, best.settings).model_dump(mode="json"), sort_keys=False)
    comment = f"# The best of {len(search.trials)} trials by {search.metric}: trial {best.number}, {best.value:.4f}.\n"
    out.put_bytes(BEST_NAME, (comment + settings).encode())
    out.put_bytes(SEARCH_NAME, (search.model_dump_json(indent=1) + "\n").encode())
    out.put_bytes(REPORT_NAME, search_report(search).encode())
    with out.new_shard(_SHARD, TRIAL_SCHEMA) as writer, out.new_rejects(_SHARD) as rejects:
        writer.write(pa.Table.from_pylist([trial.row() for trial in search.trials], schema=TRIAL_SCHEMA))
    counts = {
        "trials": len(search.trials),
        "failed": sum(trial.value is None for trial in search.trials),
        "documents": search.documents,
        "test_documents": search.test_documents,
        "unlabelled": search.unlabelled,
    }
    return out.finish([(_SHARD, out.commit(_SHARD, writer, rejects, counts))])


# --- Settings --------------------------------------------------------------------------------------------------------


def choose_settings(choose: Callable[[str], Any]) -> dict[str, Any]:
    """The settings that affect a head, by the names of `SearchSpace`; `choose` is called for those that are needed."""
    settings = {"kind": choose("kind")}
    if settings["kind"] in ("encoder", "stack"):
        settings |= {"layers": choose("layers"), "model": choose("model")}
        if settings["model"] == "kernel":
            settings["landmarks"] = choose("landmarks")
        else:
            settings["task"] = choose("task")
        if settings["model"] == "mlp":
            settings["width"] = choose("width")
        if settings["model"] == "mlp" or settings.get("task", "regression") != "regression":
            settings |= {"learning_rate": choose("learning_rate"), "weight_decay": choose("weight_decay")}
    return {**settings, "balance": choose("balance")}


def settings_of(config: TrainConfig) -> dict[str, Any]:
    """The settings of a configuration, as `choose_settings` returns those of a trial."""
    values = {"kind": config.kind, "layers": config.layers, **config.head.model_dump()}
    return choose_settings(lambda name: values[_FIELDS.get(name, name)])


def config_of(base: TrainConfig, settings: Mapping[str, Any]) -> TrainConfig:
    """The configuration with the settings of a trial."""
    own = {name: settings[name] for name in ("kind", "layers") if name in settings}
    head = base.head.model_dump() | ({"task": "regression"} if "model" in settings else {})
    head |= {_FIELDS.get(name, name): value for name, value in settings.items() if name not in own}
    return TrainConfig.model_validate(base.model_dump() | own | {"head": head})


def _open_trainers(
    config: SearchConfig, criteria: Sequence[Criterion], stack: ExitStack
) -> tuple[_Trainers, list[Trainer]]:
    """A trainer for each kind in the space, with the layers of the trial that uses most; and those to give the texts.

    The members of a stack, which is opened first, serve as separate trainers.
    """
    layers = {config.train.layers, *config.space.layers}
    widest = config.train.model_copy(update={"layers": layers.pop() if len(layers) == 1 else "all"})
    by_kind: _Trainers = {}
    opened: list[Trainer] = []
    for kind in sorted({config.train.kind, *config.space.kind}, key="stack".__ne__):
        if kind not in by_kind:
            settings = widest.model_copy(update={"kind": kind})
            trainer = stack.enter_context(create_trainer(settings, criteria, Settings().embedding_dir))
            opened.append(trainer)
            by_kind[kind] = trainer
            if isinstance(trainer, StackTrainer):
                by_kind |= dict(zip(MEMBERS, trainer.members, strict=True))
    return by_kind, opened


# --- Trials ----------------------------------------------------------------------------------------------------------


def _run_trials(
    config: SearchConfig, trainers: _Trainers, validation: CrossValidation, out: OutputDirectory
) -> list[tuple[Trial, Array]]:
    """All trials with their resampled figures; those of an earlier run come from the study in scratch.

    For an output at a URL, whose scratch ends with the process, the study is kept there after each trial.
    """
    path, kept = out.scratch / STUDY_NAME, out.location / PROGRESS_NAME / STUDY_NAME
    if not out.is_local and (content := kept.find_bytes()) is not None:
        path.write_bytes(content)
    study = _open_study(path)
    results = [_read(trial) for trial in study.get_trials(deepcopy=False) if _RESULT in trial.user_attrs]
    with progress("Trying settings", config.trials) as bar:
        bar.advance(len(results))
        for number in range(len(results), config.trials):
            drawn, settings = _draw_trial(study, number, config)
            earlier = next((result for result in results if result[0].settings == settings), None)
            if earlier is None:
                result = _run_trial(number, settings, config, trainers, validation)
            else:
                same_as = earlier[0].number if earlier[0].same_as is None else earlier[0].same_as
                copied = earlier[0].model_copy(update={"number": number, "seconds": 0.0, "same_as": same_as})
                result = copied, earlier[1]
            drawn.set_user_attr(_FIGURES, result[1].tolist())
            drawn.set_user_attr(_RESULT, result[0].model_dump(mode="json"))  # last: it marks the trial as finished
            _tell(study, drawn.number, result[0])
            if not out.is_local:
                kept.write_bytes(path.read_bytes())
            results.append(result)
            bar.advance()
    return results


def _run_trial(
    number: int,
    settings: dict[str, Any],
    config: SearchConfig,
    trainers: _Trainers,
    validation: CrossValidation,
) -> tuple[Trial, Array]:
    """The trial with its figure, and that figure followed by its resamples."""
    started = time.perf_counter()
    trial, figures = Trial(number=number, settings=settings, seconds=0), np.array([np.nan])
    try:
        train = config_of(config.train, settings)
        predictions = validation.predict(trainers[train.kind].with_settings(train))
    except (np.linalg.LinAlgError, InputError) as error:
        trial.reason = f"the head cannot be fitted: {error}"
    else:
        if np.isfinite(predictions).all():
            figures = validation.figures(predictions)
        if np.isfinite(figures[0]):
            trial.value = float(figures[0])
        else:
            trial.reason = f"{PAIR_FIGURES[config.metric]} is undefined for these labels and the head's scores"
        if (spread := _spread(figures)) is not None:
            trial.standard_error, trial.low, trial.high = spread.standard_error, spread.low, spread.high
    trial.seconds = time.perf_counter() - started
    logger.debug(f"Trial {number}: {trial.reason or trial.value} with {settings}")
    return trial, figures


def _spread(figures: Array) -> Spread | None:
    """A figure and its resamples [1 + resamples]; None if the figure or most resamples are undefined.

    The interval is widened to the figure if the percentiles leave it out.
    """
    resamples = figures[1:][np.isfinite(figures[1:])]
    if not np.isfinite(figures[0]) or len(resamples) < max(2, (len(figures) - 1) / 2):
        return None
    value, (low, high) = float(figures[0]), np.quantile(resamples, [0.025, 0.975]).tolist()
    return Spread(value=value, standard_error=float(resamples.std(ddof=1)), low=min(low, value), high=max(high, value))


# --- The study -------------------------------------------------------------------------------------------------------


def _open_study(path: Path) -> optuna.Study:
    """The study in a journal file, without the trial that a killed run left unfinished: it is drawn again."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if path.exists():  # this process holds the lock of the output directory, so no other one writes here
        Path(f"{path}.lock").unlink(missing_ok=True)
        os.truncate(path, path.read_bytes().rfind(b"\n") + 1)  # a line that a killed run left incomplete
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(path)))
    study = optuna.create_study(storage=storage, study_name="search", direction="maximize", load_if_exists=True)
    for trial in study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
        _tell(study, trial.number, _read(trial)[0] if _RESULT in trial.user_attrs else None)
    return study


def _read(trial: optuna.trial.FrozenTrial) -> tuple[Trial, Array]:
    return Trial.model_validate(trial.user_attrs[_RESULT]), np.array(trial.user_attrs[_FIGURES])


def _draw_trial(study: optuna.Study, number: int, config: SearchConfig) -> tuple[optuna.Trial, dict[str, Any]]:
    """The next trial and its settings. Trial 0 is the default; the study has those of its settings in the space."""
    seed = int(digest_of([config.seed, number])[:8], 16)
    study.sampler = optuna.samplers.TPESampler(seed=seed, multivariate=False, constant_liar=False)
    default = settings_of(config.train)
    if number == 0 and not study.get_trials(deepcopy=False, states=[TrialState.WAITING]):
        study.enqueue_trial(default)
    drawn = study.ask()

    def draw(name: str) -> Any:
        values = getattr(config.space, name)
        if isinstance(values, list):
            return drawn.suggest_categorical(name, values)
        return float(f"{drawn.suggest_float(name, *values, log=name != 'balance'):.2g}")  # two digits are enough

    if number:
        return drawn, choose_settings(draw)
    for name, value in default.items():
        values = getattr(config.space, name)
        if value in values if isinstance(values, list) else values[0] <= value <= values[1]:
            draw(name)
    return drawn, default


def _tell(study: optuna.Study, number: int, trial: Trial | None) -> None:
    """Finish a trial in the study, with its figure without the last bits, in which machines may differ."""
    if trial is None or trial.value is None:
        study.tell(number, state=TrialState.FAIL)
    else:
        study.tell(number, round(trial.value, 6))
