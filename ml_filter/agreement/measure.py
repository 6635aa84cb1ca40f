"""Measure how well raters agree, from files to a directory with figures, plots and a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ml_filter.agreement.agreement import AGREEMENT_NAME, REPORT_NAME, Agreement, compare_ratings
from ml_filter.agreement.config import AgreementConfig
from ml_filter.agreement.page import agreement_plots, agreement_report
from ml_filter.agreement.ratings import Ratings, read_ratings
from ml_filter.documents.manifest import Manifest
from ml_filter.documents.output_directory import OutputDirectory


def measure_agreement(scores: Sequence[str], config: AgreementConfig, output: str | Path) -> tuple[Agreement, Manifest]:
    """Compare the raters of annotation directories, score directories and rated tables.

    Writes `agreement.json`, `agreement.html` and plots as .svg. An undefined figure is None, with the reason.

    Raises:
        InputError: an input cannot be read, or there is nothing to compare.
    """
    ratings, parents = read_ratings(scores, config)
    with OutputDirectory(output, "agreement", config, parents) as out:
        if out.manifest:
            return Agreement.model_validate_json(out.fs.cat_file(f"{out.root}/{AGREEMENT_NAME}")), out.manifest
        agreement = compare_ratings(ratings, config)
        write_agreement(out, agreement, ratings)
        counts = {
            "documents": agreement.overall.documents,
            "raters": len(agreement.raters),
            "failed": sum(rater.failed for rater in agreement.raters),
            "unmatched_rows": sum(rated.unmatched_rows for rated in agreement.inputs),
        }
        return agreement, out.finish([], counts)


def write_agreement(out: OutputDirectory, agreement: Agreement, ratings: Ratings) -> dict[str, str]:
    """Write `agreement.json`, `agreement.html` and the plots; returns the plots by name."""
    plots = agreement_plots(agreement, ratings)
    for name, svg in plots.items():
        out.put_bytes(f"{name}.svg", svg.encode())
    out.put_bytes(AGREEMENT_NAME, (agreement.model_dump_json(indent=1) + "\n").encode())
    out.put_bytes(REPORT_NAME, agreement_report(agreement, plots).encode())
    return plots
