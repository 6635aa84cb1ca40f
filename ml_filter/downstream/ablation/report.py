"""The page of an ablation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ml_filter.downstream.ablation.result import REPORT_NAME, Ablation
from ml_filter.downstream.ablation.targets import HIGH, LOW
from ml_filter.rendering.html import render
from ml_filter.rendering.plots import interval_plot, learning_curves
from ml_filter.tracking import RunRecord


def ablation_page(ablation: Ablation) -> str:
    """HTML with the verdict, the table of arms, learning curves, power and provenance."""
    arms = [arm.name for arm in ablation.arms]
    gains = [
        (f"{comparison.arm}, {comparison.target}", *comparison.gain.interval)
        for comparison in ablation.comparisons
        if comparison.gain.interval and comparison.target in (HIGH, LOW)
    ]
    return render(
        "downstream/ablation/templates/ablation.html",
        a=ablation,
        bits={arm: {target.name: ablation.mean_bits(arm, target.name) for target in ablation.targets} for arm in arms},
        comparisons={(c.arm, c.target): c for c in ablation.comparisons},
        tasks=_tasks(ablation),
        plots={
            "curves": learning_curves(_curves(ablation), xlabel="training tokens", ylabel="bits per byte on high"),
            "gains": interval_plot(gains, xlabel="gain over random in bits per byte", reference=0.0),
        },
    )


def ablation_record(ablation: Ablation, digest: str) -> RunRecord:
    """Bits per byte and gains by arm and target, the curves of the arms, and the page, for the experiment tracker."""
    record = RunRecord(pages={REPORT_NAME: ablation_page(ablation)})
    record.parameters = {"verdict": ablation.verdict, "reason": ablation.reason, "ablation_digest": digest}
    record.parameters |= ablation.dial
    for arm in ablation.arms:
        for target in ablation.targets:
            record.metrics[f"{arm.name}_{target.name}_bits_per_byte"] = ablation.mean_bits(arm.name, target.name)
    for comparison in ablation.comparisons:
        if (gain := comparison.gain.value) is not None:
            record.metrics[f"{comparison.arm}_{comparison.target}_gain"] = gain
    points: dict[int, dict[str, float | None]] = {}
    for name, curve in _curves(ablation).items():
        for tokens, bits in curve:
            step = round(tokens / ablation.training_tokens * ablation.steps)
            points.setdefault(step, {"step": step})[f"{name}_curve"] = bits
    record.history = [points[step] for step in sorted(points)]
    return record


def _curves(ablation: Ablation) -> dict[str, list[tuple[float, float]]]:
    """By arm: training tokens and bits per byte then, mean over its models."""
    return {
        arm.name: _mean_curve([model.curve for model in ablation.models if model.arm == arm.name])
        for arm in ablation.arms
    }


def _mean_curve(curves: Sequence[Sequence[tuple[int, float]]]) -> list[tuple[float, float]]:
    return [(float(tokens), float(bits)) for tokens, bits in np.mean(np.array(curves), axis=0)]


def _tasks(ablation: Ablation) -> dict[str, dict[str, Any]]:
    """By task: the mean figure of each arm."""
    names = dict.fromkeys(name for model in ablation.models for name in model.tasks)
    return {
        name: {
            arm.name: float(np.mean([m.tasks[name] for m in ablation.models if m.arm == arm.name]))
            for arm in ablation.arms
        }
        for name in names
    }
