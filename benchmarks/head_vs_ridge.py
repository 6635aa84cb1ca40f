"""Does the head beat ridge on the same encoder's embeddings?

Trains on fineweb_edu_llm_scored_1000.jsonl, tests on edu_human_gold_dev.jsonl, which no choice was made on. The
baseline is ridge on the mean-pooled last layer, its penalty by leave-one-out. Differences carry a paired bootstrap
interval over the test documents.

    python benchmarks/head_vs_ridge.py ../shared/data
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ml_filter.heads.batching import run_in_batches
from ml_filter.heads.encoder import load_encoder
from ml_filter.heads.metrics import evaluate_scores
from ml_filter.heads.model import HeadModel
from ml_filter.heads.ridge import ALPHAS, fit_ridge, label_weights
from ml_filter.settings import EMBEDDED_ENCODER

RESAMPLES = 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    folder = parser.parse_args().data
    train = [json.loads(line) for line in (folder / "fineweb_edu_llm_scored_1000.jsonl").read_text().splitlines()]
    test = [json.loads(line) for line in (folder / "edu_human_gold_dev.jsonl").read_text().splitlines()]
    labels = np.array([float(row["llama3_70b_score"]) for row in train])
    encoder = load_encoder(EMBEDDED_ENCODER)
    model = HeadModel.from_encoder(encoder, max_tokens=512)

    def embed(rows: list[dict[str, str]]) -> np.ndarray:
        texts = [row["text"] for row in rows]
        return run_in_batches(
            texts, encoder.tokenizer, model.embed, max_tokens=512, batch_tokens=4096, device=torch.device("cpu")
        )

    x_train, x_test = embed(train), embed(test)
    last = slice(-int(model.encoder.config.hidden_size), None)
    ridge = make_pipeline(StandardScaler(), RidgeCV(alphas=ALPHAS)).fit(x_train[:, last], labels)
    scores = {"ridge on the last layer": ridge.predict(x_test[:, last])}
    for name, balance in (("head, balance 0", 0.0), ("head (default, balance 0.5)", 0.5)):
        weights, bias, _ = fit_ridge(x_train, labels, label_weights(labels, balance), seed=0)
        scores[name] = np.clip(x_test @ weights + bias, 0, 5)

    resamples = np.random.default_rng(0).integers(0, len(test), (RESAMPLES, len(test)))
    print("| | Spearman, LLM | difference [95%] | Spearman, humans | difference [95%] | macro-F1 at 3, humans |")
    print("|---|---|---|---|---|---|")
    baseline = scores["ridge on the last layer"]
    for name, made in scores.items():
        cells = []
        for column in ("llama3_70b_score", "human_score"):
            wanted = np.array([row[column] for row in test])
            differences = [
                spearmanr(made[i], wanted[i]).statistic - spearmanr(baseline[i], wanted[i]).statistic for i in resamples
            ]
            low, high = np.percentile(differences, [2.5, 97.5])
            cells += [
                f"{spearmanr(made, wanted).statistic:.3f}",
                f"{low:+.3f} to {high:+.3f}" if any(differences) else "",
            ]
        figures = evaluate_scores(made, wanted, low=0, high=5, threshold=3)
        print(f"| {name} | {' | '.join(cells)} | {figures.macro_f1_at_threshold:.3f} |")


if __name__ == "__main__":
    main()
