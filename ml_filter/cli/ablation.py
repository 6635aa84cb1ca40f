"""The command that shows whether a filter helps."""

from __future__ import annotations

from typing import Annotated

import typer

from ml_filter.cli.command import Output, command
from ml_filter.cli.output import show_figures
from ml_filter.downstream.ablation.config import AblateConfig


@command(
    "ml-filter filter runs/scored --keep-fraction 0.3 --dropped --output runs/filtered",
    "ml-filter ablate runs/filtered --gold gold.jsonl --gold-column human_score --output runs/ablation",
    "ml-filter ablate runs/filtered --gold gold.jsonl --depth 12 --passes 1 --output runs/ablation-135m",
)
def ablate(
    filtered: Annotated[
        str, typer.Argument(metavar="FILTERED", help="Directory made by filter with --dropped", show_default=False)
    ],
    output: Output,
    ablate: AblateConfig,
) -> None:
    """Show whether a filter helps.

    Small models are trained on what it keeps, on what it drops and on random documents, and measured on gold.
    """
    from ml_filter.downstream.ablation.run import ablate_filter

    ablation, manifest = ablate_filter(filtered, ablate, output)
    targets = [target.name for target in ablation.targets]
    rows = []
    for arm in ablation.arms:
        gains = {c.target: c.gain for c in ablation.comparisons if c.arm == arm.name}
        cells = []
        for target in targets:
            gain = gains.get(target)
            cells.append(f"{ablation.mean_bits(arm.name, target):.4f}")
            cells.append(f"{gain.value:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]" if gain else "")
        rows.append((arm.name, *cells))
    headers = [header for target in targets for header in (f"{target}, bits per byte", "gain over random")]
    show_figures("ablation", ["arm", *headers], rows)
    minutes = ablation.cpu_seconds / 60
    lines = [f"{ablation.verdict}: {ablation.reason}", *(f"warning: {warning}" for warning in ablation.warnings)]
    lines += [f"{len(ablation.models)} models in {minutes:.1f} processor minutes, in {manifest.parents[0].path}"]
    lines += [f"the report is in {manifest.root}"]
    for line in lines:
        typer.echo(line)
