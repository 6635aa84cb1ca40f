"""The plots of docs/training.md: Spearman with human scores from its table, curves and thresholds from an evaluation.

ml-filter train ../shared/data/fineweb_edu_llm_scored_1000.jsonl --label-column llama3_70b_score --output head
ml-filter evaluate head ../shared/data/edu_human_gold_dev.jsonl --label-column human_score --output evaluation
python benchmarks/head_plots.py docs/training.md evaluation docs/images
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import numpy as np
import pyarrow.dataset as ds

from ml_filter.evaluation.result import EVALUATION_NAME, HeadEvaluation, evaluation_plots
from ml_filter.rendering.plots import interval_plot

BY_HUMANS = "Spearman, humans"
INTERVAL = re.compile(r"([\d.]+) \(([\d.]+) to ([\d.]+)\)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path, help="with the table that head_quality.py prints")
    parser.add_argument("evaluation", type=Path, help="directory that ml-filter evaluate wrote")
    parser.add_argument("output", type=Path)
    options = parser.parse_args()
    rows = quality_rows(options.page.read_text())
    evaluation = HeadEvaluation.model_validate_json((options.evaluation / EVALUATION_NAME).read_text())
    predictions = ds.dataset(options.evaluation / "shards").to_table(["score", "label"])
    plots = evaluation_plots(
        evaluation,
        predictions["score"].to_numpy().astype(np.float64),
        predictions["label"].to_numpy().astype(np.float64),
    )
    made = {
        "heads": interval_plot(rows, xlabel="Spearman with the human scores"),
        "evaluation-curves": plots["curves"],
        "threshold-keeps": plots["thresholds"],
    }
    for name, svg in made.items():
        (options.output / f"{name}.svg").write_text(svg)


def quality_rows(page: str) -> list[tuple[str, float, float, float]]:
    """Head, figure, low and high of each row of the table that states an interval of Spearman with the humans."""
    rows, place = [], None
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0] == "head" and BY_HUMANS in cells:
            place = cells.index(BY_HUMANS)
        elif not line.startswith("|"):
            place = None
        elif place is not None and (found := INTERVAL.fullmatch(cells[place])):
            value, low, high = map(float, found.groups())
            rows.append((cells[0], value, low, high))
    return rows


if __name__ == "__main__":
    main()
