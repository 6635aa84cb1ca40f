"""Benchmarks of lm-eval on the tuned model and its base, asked in the chat template of the tuning."""

from __future__ import annotations

from collections.abc import Mapping

from ml_filter.config import Settings
from ml_filter.documents.manifest import Manifest
from ml_filter.downstream.benchmarks.measure import Benchmarks, Result, read_results
from ml_filter.downstream.judging.contestants import unchanged_base
from ml_filter.downstream.judging.figures import MODELS, paired_figures
from ml_filter.downstream.tuning.base import load_tokenizer
from ml_filter.downstream.tuning.result import MODEL_DIRECTORY, TunedModel
from ml_filter.errors import ConfigError
from ml_filter.location import Location
from ml_filter.statistics.intervals import Figure, Resampling


def measure_both(model: TunedModel, benchmarks: Benchmarks, output: str, settings: Settings) -> dict[str, Manifest]:
    """The stages with the figures of both models.

    Raises:
        ConfigError: the tuned model is not on this machine.
        InputError: the base has changed since the tuning.
    """
    tuned = Location(model.root) / MODEL_DIRECTORY
    if not tuned.is_local:
        raise ConfigError(f"lm_eval_tasks, multiple_choice: {model.root} is not on this machine; copy it here")
    base = unchanged_base(model, settings)
    tokenizer = load_tokenizer(base, model.result.config)
    return {
        _stage(name): benchmarks.measure(directory, weights, output, tokenizer=tokenizer)
        for name, directory, weights in (
            ("base", base.directory, model.result.base),
            ("tuned", tuned.local, model.parent),
        )
    }


def benchmark_figures(stages: Mapping[str, Manifest], resampling: Resampling) -> dict[str, Figure]:
    """`base_*`, `tuned_*` and `change_*` of each figure of both models, paired by question where it is a mean."""
    if _stage("base") not in stages:
        return {}
    base, tuned = (read_results(stages[_stage(name)]) for name in MODELS)
    figures: dict[str, Figure] = {}
    for name in sorted(base.keys() & tuned.keys()):
        of_name = _paired(base[name], tuned[name], resampling)
        figures |= {f"{side}_{name}": figure for side, figure in of_name.items()}
    return figures


def _paired(base: Result, tuned: Result, resampling: Resampling) -> dict[str, Figure]:
    if base.by_question and base.by_question.keys() == tuned.by_question.keys():
        values = [(base.by_question[question], tuned.by_question[question]) for question in sorted(base.by_question)]
        return paired_figures(values, resampling)
    values_of = {"base": base.value, "tuned": tuned.value, "change": tuned.value - base.value}
    reason = "no interval: the figure is not a mean over questions"
    return {side: Figure(value=value, documents=0, reason=reason) for side, value in values_of.items()}


def _stage(name: str) -> str:
    return f"lm-eval, {name}"
