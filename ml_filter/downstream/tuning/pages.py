"""The report and the model card of a tuned model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from ml_filter.downstream.tuning.result import TuningResult, public_path, public_settings
from ml_filter.downstream.tuning.train import FIGURES
from ml_filter.rendering.html import render, render_text
from ml_filter.rendering.plots import training_curves

FIGURE_NAMES = {
    "base_loss": "held-out loss of the base",
    "loss": "held-out loss",
    "loss_change": "change of the loss",
    "base_perplexity": "perplexity of the base",
    "perplexity": "perplexity",
    "accuracy": "pairs whose chosen answer gained more",
    "margin": "mean reward margin",
}
_ADAPTERS = {"full": "all weights", "lora": "a LoRA adapter", "qlora": "a LoRA adapter on a base of 4 bits (QLoRA)"}


def write_report(result: TuningResult) -> str:
    """The page: figures, curves, data, settings and lineage."""
    return render(
        "downstream/tuning/templates/report.html",
        result=result,
        title=_title(result),
        names=FIGURE_NAMES,
        verdict=verdict(result),
        curves=training_curves(_curves(result.history)),
        settings=_settings(result),
    )


def write_card(result: TuningResult) -> str:
    """The model card in Markdown, with the Hub's header. Of local paths it states only the last part."""
    from huggingface_hub import ModelCardData

    base = result.base.path.removeprefix("hf://").partition("@")[0]
    header = ModelCardData(
        license=result.config.license,
        base_model=base if re.fullmatch(r"[\w.-]+/[\w.-]+", base) else None,
        pipeline_tag="text-generation",
        library_name="transformers",
        tags=["ml-filter", result.config.method, "trl", *(["lora"] if result.config.is_adapter else [])],
    )
    return render_text(
        "downstream/tuning/templates/card.md",
        header=str(header.to_yaml()).strip(),
        result=result,
        title=_title(result),
        names=FIGURE_NAMES,
        verdict=verdict(result),
        settings=_settings(result),
        local_name=public_path,
    )


def verdict(result: TuningResult) -> str:
    """What the held-out conversations show, in one sentence."""
    change = result.figures["loss_change"]
    if change.interval is None:
        return f"Too few held-out documents ({change.documents}) to tell whether tuning helps."
    _, low, high = change.interval
    shown = "lowers" if high < 0 else "raises" if low > 0 else "does not clearly change"
    return f"Tuning {shown} the held-out loss: {change.text} on {change.documents} documents."


def _title(result: TuningResult) -> str:
    base, trained = PurePosixPath(result.base.path).name, _ADAPTERS[result.config.weights]
    return f"{base} tuned by {result.config.method.upper()}: {trained}"


def _settings(result: TuningResult) -> dict[str, object]:
    settings = {**public_settings(result.config), "base": result.base.path}
    return {**settings, "learning_rate": result.config.peak_learning_rate}


def _curves(history: Sequence[dict[str, float]]) -> dict[str, dict[str, tuple[list[float], list[float]]]]:
    """The lines of each figure: training, and the held-out set where it has the figure, too."""
    panels: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
    for name, title in FIGURES.items():
        lines = {}
        for line, key in (("training", name), ("held out", f"eval_{name}")):
            points = [(row["step"], row[key]) for row in history if key in row]
            if points:
                steps, values = zip(*points, strict=True)
                lines[line] = (list(steps), list(values))
        if lines:
            panels[title] = lines
    return panels
