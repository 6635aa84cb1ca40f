"""Which prompt and answer mode ranks best with the embedded judge?

Annotates documents with human and LLM scores (edu_human_gold_dev.jsonl) in each way and prints the rank agreement.
Every way is a real prompt through the project's own annotator.

    python benchmarks/embedded_judge.py ../shared/data/edu_human_gold_dev.jsonl [--documents 255]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import yaml
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from ml_filter.annotation.annotate import annotate_documents
from ml_filter.annotation.prompts import load_prompt
from ml_filter.logs import configure_logging
from ml_filter.settings import AnnotateConfig, SourceConfig

SCORE = {"min": 0, "max": 5}
COMMON = {"criterion": "educational_value", "language": "en", "score": SCORE, "max_text_chars": 600, "one_line": True}
SCALE = "0 is advertising or junk, 5 is excellent teaching material."
WAYS = {
    "digit": {
        "text": f"How educational is this page, from 0 to 5? {SCALE} Answer with one digit.\n\nPage: {{text}}",
        "pattern": r"([0-5])",
        "max_tokens": 8,
    },
    "digit_few_shot": {
        "api": "completion",
        "text": "Page: Buy shoes now, free shipping on all items.\nScore: 0\n\n"
        "Page: Plants turn light, water and carbon dioxide into glucose and oxygen.\nScore: 5\n\n"
        "Page: The band announced new tour dates.\nScore: 1\n\n"
        "Page: {text}\nScore:",
        "pattern": r"([0-5])",
        "max_tokens": 3,
    },
    "yes_or_no": {
        "mode": "choice",
        "text": "Is this page useful for teaching? Answer Yes or No.\n\nPage: {text}",
        "choices": {"Yes": 5, "No": 0},
        "top_logprobs": 300,
    },
    "category": load_prompt("educational_value_small").model_dump(exclude={"description"}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gold", type=Path)
    parser.add_argument("--documents", type=int, default=255)
    options = parser.parse_args()
    configure_logging(level="WARNING")
    rows = [json.loads(line) for line in options.gold.read_text().splitlines()][: options.documents]
    llm = {row["id"]: row["llama3_70b_score"] for row in rows}
    human = {row["id"]: row["human_score"] for row in rows}
    print("| way | score | documents | failed | Spearman, LLM | Spearman, humans | AUC, LLM >= 3 | documents/s |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "documents.jsonl"
        source.write_text("".join(json.dumps({"id": row["id"], "text": row["text"]}) + "\n" for row in rows))
        for name, way in WAYS.items():
            prompt = Path(scratch) / f"{name}.yaml"
            prompt.write_text(yaml.safe_dump({**COMMON, **way, "name": name}))
            config = AnnotateConfig(prompt=str(prompt), max_concurrency=8, max_failed_share=1)
            start = time.monotonic()
            made = annotate_documents(SourceConfig(paths=[str(source)]), config, Path(scratch) / name)
            rate = made.counts["documents"] / (time.monotonic() - start)
            table = pq.read_table(made.shard_paths()[0])
            for column in ("score", "expected_score"):
                found = [
                    (i, s)
                    for i, s in zip(table["document_id"].to_pylist(), table[column].to_pylist(), strict=True)
                    if s is not None
                ]
                scores = np.array([score for _, score in found])
                if len(np.unique(scores)) < 2:
                    print(
                        f"| {name} | {column} | {len(found)} | {len(rows) - len(found)} | all alike | | | {rate:.1f} |",
                        flush=True,
                    )
                    continue
                by_llm = np.array([llm[i] for i, _ in found])
                agreement = [
                    spearmanr(scores, by_llm).statistic,
                    spearmanr(scores, [human[i] for i, _ in found]).statistic,
                ]
                auc = roc_auc_score(by_llm >= 3, scores)
                print(
                    f"| {name} | {column} | {len(found)} | {len(rows) - len(found)} | {agreement[0]:.3f} | "
                    f"{agreement[1]:.3f} | {auc:.3f} | {rate:.1f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
