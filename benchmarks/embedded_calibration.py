"""Fits the calibration of the embedded annotator (`calibration` in educational_value_small.yaml) and measures it.

The curve links percentiles: k - 0.5 is the score below which lie as many documents as have a label below k. So scores
have the distribution of the labels, over the whole range, where a regression would pull all of them to the mean. It
is fitted on two thirds of web documents in their natural mix, labelled by Llama-3-70B, and measured on the last third
and on documents that people have scored.

    python benchmarks/embedded_calibration.py ../shared/data --work runs/embedded_calibration
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.stats import spearmanr

from ml_filter.annotation.annotate import annotate_documents
from ml_filter.annotation.config import AnnotateConfig
from ml_filter.annotation.embedded import MODEL_NAME
from ml_filter.annotation.prompts import Curve, as_yaml, load_prompt
from ml_filter.config import Settings
from ml_filter.documents.config import SourceConfig
from ml_filter.logs import configure_logging

PROMPT = load_prompt("educational_value_small").model_copy(update={"calibration": None})
NATURAL, GOLD = "fineweb_edu_llm_scored_1000", "edu_human_gold_dev"
SETS = ((NATURAL, "llama3_70b_score"), (GOLD, "human_score"), (GOLD, "llama3_70b_score"))

Array = NDArray[Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="directory with the two labelled files")
    parser.add_argument("--work", type=Path, required=True, help="directory of the annotations")
    options = parser.parse_args()
    configure_logging(level="WARNING")
    options.work.mkdir(parents=True, exist_ok=True)
    raw = {name: raw_scores(options.data / f"{name}.jsonl", options.work) for name in (NATURAL, GOLD)}
    labels = {(name, column): read_labels(options.data / f"{name}.jsonl", column) for name, column in SETS}
    scored = sorted(raw[NATURAL].keys() & labels[SETS[0]].keys())
    test = [name for name in scored if int(hashlib.sha256(name.encode()).hexdigest(), 16) % 3 == 0]
    fit = sorted(set(scored) - set(test))
    curve = fitted([raw[NATURAL][i] for i in fit], [labels[SETS[0]][i] for i in fit])
    print(as_yaml({"calibration": curve.model_dump()}))
    print(
        "| documents | label | calibration | 5%, 50%, 95% of scores | MAE | Spearman | kept at 3 | precision | recall |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for name, column in SETS:
        ids = test if name == NATURAL else sorted(raw[name].keys() & labels[name, column].keys())
        wanted = np.array([labels[name, column][i] for i in ids])
        for prompt in (PROMPT, PROMPT.model_copy(update={"calibration": curve})):
            scores = np.array([prompt.calibrated(raw[name][i]) for i in ids])
            print(f"| {name} | {column} | {figures(scores, wanted, prompt)} |")


def raw_scores(file: Path, work: Path) -> dict[str, float]:
    """The annotator's expected score of each document, without calibration."""
    prompt, source = work / "prompt.yaml", work / file.name
    prompt.write_text(as_yaml(PROMPT.model_dump(mode="json", exclude_none=True)))
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    source.write_text("".join(json.dumps({"id": row["id"], "text": row["text"]}) + "\n" for row in rows))
    config = AnnotateConfig(prompts=[str(prompt)])
    manifest = annotate_documents(SourceConfig(paths=[str(source)]), config, work / file.stem, Settings(endpoint=None))
    table = pq.read_table(manifest.shard_paths()[0]).to_pylist()
    return {row["document_id"]: row["expected_score"] for row in table if row["expected_score"] is not None}


def read_labels(file: Path, column: str) -> dict[str, float]:
    """The labels of documents by id."""
    rows = map(json.loads, file.read_text().splitlines())
    return {row["id"]: row[column] for row in rows if row[column] is not None}


def fitted(raw: list[float], labels: list[float]) -> Curve:
    """The curve that gives raw scores the distribution of the labels."""
    low, high = PROMPT.score.min, PROMPT.score.max
    shares = (np.array(raw) - low) / (high - low)
    log_odds = np.log(shares / (1 - shares))
    cuts = np.arange(np.ceil(low) + 1, max(labels) + 1)
    x = [log_odds.min(), *np.quantile(log_odds, [np.mean(np.array(labels) < cut) for cut in cuts]), log_odds.max()]
    y = (np.array([low, *(cuts - 0.5), min(max(labels) + 0.5, high)]) - low) / (high - low)
    source = (
        f"as many of {len(raw)} web documents in their natural mix reach a score as with Llama-3-70B; "
        "benchmarks/embedded_calibration.py"
    )
    points = tuple((round(float(a), 3), round(float(b), 3)) for a, b in zip(x, y, strict=True))
    return Curve(annotator=MODEL_NAME, points=points, source=source)


def figures(scores: Array, labels: Array, prompt: Any) -> str:
    """The cells of a row."""
    threshold = prompt.defined_criterion.threshold
    kept, good = scores >= threshold, labels >= threshold
    hits = int((kept & good).sum())
    precision = f"{hits / kept.sum():.2f} ({hits} of {kept.sum()})" if kept.any() else "none kept"
    quantiles = ", ".join(f"{value:.2f}" for value in np.quantile(scores, [0.05, 0.5, 0.95]))
    error, rank = np.abs(scores - labels).mean(), spearmanr(scores, labels).statistic
    cells = [quantiles, f"{error:.2f}", f"{rank:.3f}", f"{kept.mean():.1%}", precision, f"{hits / good.sum():.2f}"]
    return " | ".join(["none" if prompt.calibration is None else "curve", *cells])


if __name__ == "__main__":
    main()
