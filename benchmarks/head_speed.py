"""How much faster is training a head on cached embeddings than running every epoch through the encoder?

The baseline is what scripts in the style of FineWeb-Edu's do: the encoder is frozen, yet each of 20 epochs runs every
document through it, and AdamW trains a linear head on what comes out (last layer, mean squared error). It gets our
batches of like length and number type, so that only the way of training differs. Beside it: `ml-filter train` from an
empty cache, and again with the cache it left, with cross-fitting, calibration and evaluation in the time. All are
trained on the same documents and asked about the gold, which none has seen.

    python benchmarks/head_speed.py ../shared/data [--documents 1000] [--epochs 20]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import nn

from ml_filter.heads.batching import length_batches
from ml_filter.heads.encoder import load_encoder
from ml_filter.heads.model import HeadModel
from ml_filter.heads.train import read_head, train_head
from ml_filter.scoring.device import choose_device, choose_dtype
from ml_filter.scoring.engine import load_engine
from ml_filter.settings import EMBEDDED_ENCODER, HeadSettings, ScoreConfig, SourceConfig, TrainConfig

RATE, RESAMPLES = 3e-3, 2000
HEADS = {
    "linear, last layer": TrainConfig(layers=1, head=HeadSettings(kind="linear")),
    "default": TrainConfig(),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--documents", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=20)
    options = parser.parse_args()
    lines = (options.data / "fineweb_edu_llm_scored_1000.jsonl").read_text().splitlines()[: options.documents]
    gold = [json.loads(line) for line in (options.data / "edu_human_gold_dev.jsonl").read_text().splitlines()]
    with tempfile.TemporaryDirectory() as scratch:
        labels = Path(scratch) / "labels.jsonl"
        labels.write_text("\n".join(lines) + "\n")
        # What `ml-filter train` trains on, so that nobody has more documents than the others.
        rows: dict[str, tuple[float, Callable[[list[str]], np.ndarray]]] = {}
        for name, config in HEADS.items():
            os.environ["ML_FILTER_EMBEDDING_DIR"] = f"{scratch}/embeddings {name}"
            for cache in ("empty", "filled"):
                output = Path(scratch) / f"{name} {cache}"
                start = time.perf_counter()
                train_head(SourceConfig(paths=[str(labels)]), config.model_copy(update=LABELS), output)
                seconds = time.perf_counter() - start
                engine = load_engine(output, ScoreConfig())
                rows[f"`ml-filter train`, {name}, cache {cache}"] = (
                    seconds,
                    lambda texts, engine=engine: engine.score(texts)[:, 0],
                )
        trained_on = read_head(output).training.train_documents
        training = [json.loads(line) for line in lines]
        start = time.perf_counter()
        plain = epochs_through_the_encoder(training[:trained_on], options.epochs)
        baseline = f"{options.epochs} epochs through the encoder"
        rows = {baseline: (time.perf_counter() - start, plain), **rows}
        report(rows, baseline, gold, trained_on)


LABELS = {"label_column": "llama3_70b_score"}


def epochs_through_the_encoder(rows: list[dict], epochs: int) -> Callable[[list[str]], np.ndarray]:
    """A linear head trained by AdamW, every epoch of it on fresh forward passes of the frozen encoder."""
    device = choose_device("auto")
    encoder = load_encoder(EMBEDDED_ENCODER)
    model = HeadModel.from_encoder(encoder, layers=1).cast_encoder(choose_dtype("auto", device)).to(device)
    head = nn.Linear(model.width, 1).to(device)
    labels = torch.tensor([float(row["llama3_70b_score"]) for row in rows], device=device)
    nn.init.constant_(head.bias, float(labels.mean()))
    optimizer = torch.optim.AdamW(head.parameters(), RATE)
    random = np.random.default_rng(0)

    def embedded(texts: list[str]) -> torch.Tensor:
        encoded = encoder.tokenizer(
            texts, truncation=True, max_length=encoder.max_tokens, padding="longest", return_tensors="pt"
        ).to(device)
        with torch.inference_mode():
            made = model.embed(encoded["input_ids"], encoded["attention_mask"])
        return made.clone()

    lengths = [len(ids) for ids in encoder.tokenizer([r["text"] for r in rows], truncation=True)["input_ids"]]
    batches = list(length_batches(lengths, ScoreConfig().batch_tokens))
    for _ in range(epochs):
        for batch in random.permutation(len(batches)):
            places = batches[batch]
            made = head(embedded([rows[place]["text"] for place in places]))[:, 0]
            optimizer.zero_grad()
            nn.functional.mse_loss(made, labels[places]).backward()
            optimizer.step()

    def score(texts: list[str]) -> np.ndarray:
        with torch.inference_mode():
            parts = [head(embedded(texts[start : start + 16]))[:, 0] for start in range(0, len(texts), 16)]
        return torch.cat(parts).cpu().numpy()

    return score


def report(
    rows: dict[str, tuple[float, Callable[[list[str]], np.ndarray]]], baseline: str, gold: list[dict], documents: int
) -> None:
    texts = [row["text"] for row in gold]
    wanted = {
        name: np.array([float(row[column]) for row in gold])
        for name, column in (("LLM", "llama3_70b_score"), ("humans", "human_score"))
    }
    scores = {name: score(texts) for name, (_, score) in rows.items()}
    print(
        f"{documents} documents, {torch.get_num_threads()} threads, torch {torch.__version__}, {platform.machine()}\n\n"
        "| | s | times as fast | Spearman, LLM | difference | Spearman, humans | difference |\n"
        "|---|---|---|---|---|---|---|"
    )
    for name, (seconds, _) in rows.items():
        cells = []
        for labels in wanted.values():
            cells += [f"{spearman(scores[name], labels):.3f}"]
            cells += ["" if name == baseline else difference(scores[name], scores[baseline], labels)]
        print(f"| {name} | {seconds:.1f} | {rows[baseline][0] / seconds:.1f} | {' | '.join(cells)} |")


def spearman(made: np.ndarray, labels: np.ndarray) -> float:
    return float(spearmanr(made, labels).statistic)


def difference(made: np.ndarray, other: np.ndarray, labels: np.ndarray) -> str:
    """Of Spearman, paired, with a 95% bootstrap interval over documents."""
    random = np.random.default_rng(0)
    drawn = [random.integers(0, len(labels), len(labels)) for _ in range(RESAMPLES)]
    low, high = np.percentile(
        [spearman(made[d], labels[d]) - spearman(other[d], labels[d]) for d in drawn], [2.5, 97.5]
    )
    return f"{spearman(made, labels) - spearman(other, labels):+.3f} ({low:+.3f} to {high:+.3f})"


if __name__ == "__main__":
    main()
