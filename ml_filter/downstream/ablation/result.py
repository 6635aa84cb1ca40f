"""The result of an ablation: what `ablation.json` contains, and how the verdict follows from the models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel

from ml_filter.documents.manifest import Manifest, Parent
from ml_filter.documents.result import read_result
from ml_filter.downstream.ablation.config import FILTERED, RANDOM, SHUFFLED, AblateConfig
from ml_filter.downstream.ablation.targets import HIGH
from ml_filter.downstream.ablation.training import TrainedModel
from ml_filter.statistics.intervals import Array, Figure, Resampling
from ml_filter.statistics.replicates import Power, Spread, paired_mean, smallest_difference, spread_of

Verdict = Literal["helps", "hurts", "no difference shown"]
ABLATION_NAME, REPORT_NAME = "ablation.json", "ablation.html"
ARMS_NAME, TRAINED_NAME = "arms.json", "trained.json"

_MOST_DIFFERENT_BYTES = 1.1
_BITS_OF_A_BYTE = 8
MEASURED_DEPTH = 2
MEASURED_SPREAD = Spread(documents=0.057, repetitions=0.0065)
"""Spread of the gain of filtered over random at depth 2, in bits per byte (docs/ablation.md)."""


class Arm(BaseModel):
    """What the models of an arm are trained on. `tokens` are unique; `bytes` and `documents` are means over seeds."""

    name: str
    available_documents: int
    available_bytes: int
    documents: float
    bytes: float
    tokens: int


class TrainedArms(BaseModel):
    """The content of arms.json: the models, and what their arms consist of.

    Attributes:
        left_out: documents of each corpus that shared words with a target.
        sizes: by target, the bytes of each document.
        models: their names; `models/NAME/trained.json` has the bits of each.
    """

    arms: list[Arm]
    left_out: dict[str, int]
    sizes: dict[str, list[int]]
    models: list[str]
    parameters: int
    dial: dict[str, Any]
    steps: int
    training_tokens: int


class Target(BaseModel):
    """A corpus that models are measured on, and how many of its documents were in the corpora of the arms."""

    name: str
    documents: int
    bytes: int


class Model(BaseModel):
    """A trained model, its bits per byte on each target (mean over documents), and the results of lm-eval tasks."""

    name: str
    arm: str
    seed: int
    rate: float
    final_loss: float
    cpu_seconds: float
    bits_per_byte: dict[str, float]
    curve: list[tuple[int, float]]
    tasks: dict[str, float] = {}


class Comparison(BaseModel):
    """How many bits per byte an arm saves over random documents on a target; positive: the arm is better.

    `by_rate` has the gain of the models with each factor on the learning rates.
    """

    arm: str
    target: str
    gain: Figure
    by_rate: dict[str, float]
    finding: Literal["better", "worse", "no difference shown"]


class Ablation(BaseModel):
    """The content of ablation.json.

    Attributes:
        verdict: of the filter, on the target `high` alone.
        reason: the figures behind it.
        warnings: what makes the verdict less certain.
        heads: the heads that scored the corpus, by path and digest.
        power: stated before the first model was trained.
        left_out: documents of each corpus that shared words with a target.
    """

    verdict: Verdict
    reason: str
    warnings: list[str]
    heads: list[Parent]
    power: Power
    spread: Spread
    parameters: int
    dial: dict[str, Any]
    steps: int
    training_tokens: int
    arms: list[Arm]
    targets: list[Target]
    left_out: dict[str, int]
    models: list[Model]
    comparisons: list[Comparison]
    cpu_seconds: float
    config: dict[str, Any]
    parents: list[Parent]

    def mean_bits(self, arm: str, target: str) -> float:
        """Bits per byte of an arm, mean over its models."""
        return float(np.mean([model.bits_per_byte[target] for model in self.models if model.arm == arm]))


def read_ablation(directory: str | Path) -> Ablation:
    """The result in the directory of an ablation.

    Raises:
        InputError: the directory has no result, or that of another version.
    """
    return read_result(directory, ABLATION_NAME, Ablation, "ml-filter ablate")


def model_path(name: str) -> str:
    """The directory of a model inside that of the arms."""
    return f"models/{name}"


def read_arms(arms: Manifest) -> tuple[TrainedArms, list[TrainedModel]]:
    """The arms that `train_arms` trained, and their models."""
    trained = read_result(arms, ARMS_NAME, TrainedArms, "ml-filter ablate")
    paths = [f"{model_path(name)}/{TRAINED_NAME}" for name in trained.models]
    return trained, [read_result(arms, path, TrainedModel, "ml-filter ablate") for path in paths]


def power_of(documents: int, config: AblateConfig) -> Power:
    """The power of the decisive comparison over a number of documents of the target `high`.

    Raises:
        InputError: `pilot` is not an ablation.
    """
    spread = MEASURED_SPREAD if config.pilot is None else read_ablation(config.pilot).spread
    return smallest_difference(spread, documents, config.training.seeds, config.confidence)


Sizes = Mapping[str, Sequence[int]]
"""By target: the bytes of each document."""


def compare_arms(models: Sequence[TrainedModel], sizes: Sizes, config: AblateConfig) -> list[Comparison]:
    """Every arm against random on every target, over the seeds that both have."""
    arms = dict.fromkeys(model.arm for model in models if model.arm != RANDOM)
    return [
        _compare(models, arm, target, np.array(sizes[target], np.float64), config) for target in sizes for arm in arms
    ]


def _compare(models: Sequence[TrainedModel], arm: str, target: str, sizes: Array, config: AblateConfig) -> Comparison:
    differences, rates = _paired_differences(models, arm, target, sizes)
    resampling = Resampling(confidence=config.confidence, resamples=config.resamples, seed=config.training.seed)
    figure = paired_mean(differences, resampling)
    assert figure.low is not None and figure.high is not None
    by_seed = differences.mean(axis=0)
    by_rate = {f"{rate:g}": float(by_seed[rates == rate].mean()) for rate in dict.fromkeys(rates.tolist())}
    same_sign = len({gain > 0 for gain in by_rate.values()}) == 1
    finding: Literal["better", "worse", "no difference shown"] = "no difference shown"
    if same_sign and figure.low > 0:
        finding = "better"
    elif same_sign and figure.high < 0:
        finding = "worse"
    return Comparison(arm=arm, target=target, gain=figure, by_rate=by_rate, finding=finding)


def _paired_differences(models: Sequence[TrainedModel], arm: str, target: str, sizes: Array) -> tuple[Array, Array]:
    """Bits per byte that random models need more than those of an arm [documents, seeds], and the rates [seeds]."""
    random = {model.seed: model for model in models if model.arm == RANDOM}
    own = [model for model in models if model.arm == arm]
    columns = [np.subtract(random[model.seed].bits[target], model.bits[target]) / sizes for model in own]
    return np.column_stack(columns), np.array([model.rate for model in own])


def spread_between(models: Sequence[TrainedModel], sizes: Sizes) -> Spread:
    """The spread of the gain of filtered over random on the target `high`, for the power of a later ablation."""
    return spread_of(_paired_differences(models, FILTERED, HIGH, np.array(sizes[HIGH], np.float64))[0])


def warnings_about(models: Sequence[TrainedModel], sizes: Sizes) -> list[str]:
    """A warning if models know less of the target `high` than that it consists of bytes."""
    bits = {model.name: float(np.mean(np.divide(model.bits[HIGH], sizes[HIGH]))) for model in models}
    absurd = [f"{name}: {value:.1f}" for name, value in bits.items() if value > _BITS_OF_A_BYTE]
    if not absurd:
        return []
    return [
        f"{len(absurd)} of {len(models)} models need more than {_BITS_OF_A_BYTE} bits per byte on the target high "
        f"({', '.join(absurd)}), which is worse than guessing each byte: their training has failed; use smaller "
        "learning_rates"
    ]


def verdict_of(
    comparisons: Sequence[Comparison], arms: Sequence[Arm], config: AblateConfig
) -> tuple[Verdict, str, list[str]]:
    """The verdict, its reason, and what makes it less certain."""
    by_arm = {comparison.arm: comparison for comparison in comparisons if comparison.target == HIGH}
    decisive = by_arm[FILTERED]
    gain, low, high = decisive.gain.interval or (0.0, 0.0, 0.0)
    verdicts: dict[str, Verdict] = {"better": "helps", "worse": "hurts"}
    verdict = verdicts.get(decisive.finding, "no difference shown")
    reason = (
        f"models trained on filtered documents need {abs(gain):.4f} {'fewer' if gain > 0 else 'more'} bits per byte "
        f"than models trained on random ones on the target high ({decisive.gain.documents:,} documents, "
        f"{config.confidence:.0%} interval of the gain {low:+.4f} to {high:+.4f})"
    )
    warnings = []
    if decisive.finding == "no difference shown" and (low > 0 or high < 0):
        rates = ", ".join(f"{rate}: {value:+.4f}" for rate, value in decisive.by_rate.items())
        warnings.append(f"the sign of the gain depends on the learning rate ({rates}), so that no verdict is given")
    if by_arm[SHUFFLED].finding != "no difference shown":
        warnings.append(
            f"the shuffled control is {by_arm[SHUFFLED].finding} than random, though it has random documents: expect "
            f"this in {1 - config.confidence:.0%} of all ablations, and repeat this one with other seeds"
        )
    if config.pilot is None and config.training.depth != MEASURED_DEPTH:
        warnings.append(
            f"the stated power rests on the spread measured at depth {MEASURED_DEPTH}; next time, set pilot to this "
            "ablation"
        )
    sizes = {arm.name: arm.bytes for arm in arms}
    if max(sizes.values()) > _MOST_DIFFERENT_BYTES * min(sizes.values()):
        smallest, largest = min(sizes, key=sizes.__getitem__), max(sizes, key=sizes.__getitem__)
        warnings.append(
            f"with the same number of tokens, the arm {largest} has {sizes[largest] / sizes[smallest]:.2f} times the "
            f"bytes of {smallest}: the tokenizer suits its text better"
        )
    return verdict, reason, warnings
