"""Training a head on cached embeddings against running every epoch through the encoder.

The baseline trains like the scripts of FineWeb-Edu: the encoder is frozen, but each of 20 epochs runs every document
through it, and AdamW trains a linear head on the last layer (mean squared error). It uses our batches by length and
our number type, so that only the training method differs. Its learning rate is the best of 3e-4, 1e-3, 3e-3, 1e-2 and
3e-2 after 20 epochs on 120, 320 and 800 documents, measured on 200 held-out documents. The effect of more epochs is
computed from the embeddings, which do not change. Compared with it: `ml-filter train` with an empty cache, and again
with a full cache, including cross-fitting, calibration and evaluation. All train on the same documents, without the
test documents of `ml-filter train`, and are evaluated on the gold, which none of them has seen. CPU times are
compared, because other processes on the machine affect them least.

    python benchmarks/head_speed.py ../shared/data [--documents 1000] [--epochs 20]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import nn

from ml_filter.documents.config import SourceConfig
from ml_filter.heads.batching import length_batches, run_in_batches, token_ids
from ml_filter.heads.config import EMBEDDED_ENCODER, HeadSettings, TrainConfig
from ml_filter.heads.device import choose_device, choose_dtype
from ml_filter.heads.encoder import load_encoder
from ml_filter.heads.kinds import load_head
from ml_filter.heads.labels import LabelledDocuments, read_label_table
from ml_filter.heads.model import HeadModel
from ml_filter.heads.train import train_head
from ml_filter.scoring.config import ScoreConfig

RATE, FURTHER, RESAMPLES = 1e-3, (40, 80, 160), 2000
LABEL = "llama3_70b_score"
HEADS = {
    "linear, last layer, balance 0": TrainConfig(
        label_column=LABEL, layers=1, head=HeadSettings(model="linear", balance=0)
    ),
    "default": TrainConfig(label_column=LABEL),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--documents", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=20)
    options = parser.parse_args()
    lines = (options.data / "fineweb_edu_llm_scored_1000.jsonl").read_text().splitlines()[: options.documents]
    gold = [json.loads(line) for line in (options.data / "edu_human_gold_dev.jsonl").read_text().splitlines()]
    asked = [row["text"] for row in gold]
    rows: dict[str, tuple[NDArray[np.float64], NDArray[np.float32]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        labels = Path(scratch) / "labels.jsonl"
        labels.write_text("\n".join(lines) + "\n")
        texts, wanted = trained_on(labels)
        start = np.array([time.perf_counter(), time.process_time()])
        baseline = Baseline(texts, wanted)
        baseline.train(options.epochs)
        seconds = np.array([time.perf_counter(), time.process_time()]) - start
        embedded = baseline.embedded(asked)
        rows[f"{options.epochs} epochs through the encoder"] = seconds, baseline.score(embedded)
        for name, config in HEADS.items():
            os.environ["ML_FILTER_EMBEDDING_DIR"] = f"{scratch}/embeddings {name}"
            scores: dict[str, NDArray[np.float32]] = {}
            for cache in ("empty", "filled"):
                start = np.array([time.perf_counter(), time.process_time()])
                head = train_head(SourceConfig(paths=[str(labels)]), config, Path(scratch) / f"{name} {cache}")
                seconds = np.array([time.perf_counter(), time.process_time()]) - start
                assert head.training.train_documents == len(texts)
                if head.digest not in scores:
                    scores[head.digest] = load_head(head.origin, ScoreConfig()).score(asked)[:, 0]
                rows[f"`ml-filter train`, {name}, cache {cache}"] = seconds, scores[head.digest]
    report(rows, gold, len(texts))
    print("\n| epochs | loss in training | Spearman, LLM | Spearman, humans |\n|---|---|---|---|")
    for epochs in (options.epochs, *FURTHER):
        baseline.go_on(epochs)
        figures = [spearman(baseline.score(embedded), np.array(of)) for of in columns(gold).values()]
        print(f"| {epochs} | {baseline.loss():.3f} | {figures[0]:.3f} | {figures[1]:.3f} |")


def trained_on(labels: Path) -> tuple[list[str], NDArray[np.float32]]:
    """Texts and labels of the documents that `ml-filter train` does not keep for its test."""
    config, texts = HEADS["default"], list[str]()
    known = read_label_table(LabelledDocuments(SourceConfig(paths=[str(labels)]), config), [texts.extend], config)
    places = np.flatnonzero(~known.is_test)
    return [texts[place] for place in places], known.labels[places, 0].astype(np.float32)


class Baseline:
    """A linear head trained by AdamW, every epoch of it on fresh forward passes of the frozen encoder."""

    def __init__(self, texts: list[str], labels: NDArray[np.float32]) -> None:
        device = choose_device("auto")
        self.texts = texts
        self.encoder = load_encoder(EMBEDDED_ENCODER)
        model = HeadModel.from_encoder(self.encoder, layers=1).cast_encoder(choose_dtype("auto", device))
        self.model = model.to(device)
        torch.manual_seed(0)
        self.head = nn.Linear(self.model.width, 1).to(device)
        self.labels = torch.from_numpy(labels).to(device)
        nn.init.constant_(self.head.bias, float(labels.mean()))
        self.optimizer = torch.optim.AdamW(self.head.parameters(), RATE)
        self.random = np.random.default_rng(0)
        lengths = [len(ids) for ids in token_ids(texts, self.encoder.tokenizer, self.encoder.max_tokens)]
        self.batches = list(length_batches(lengths, ScoreConfig().batch_tokens))
        self.seen = torch.zeros(len(texts), self.model.width, device=device)
        self.epochs = 0

    def embedded(self, texts: list[str]) -> torch.Tensor:
        made = run_in_batches(
            texts,
            self.encoder.tokenizer,
            self.model.embed,
            max_tokens=self.encoder.max_tokens,
            batch_tokens=ScoreConfig().batch_tokens,
            device=self.model.device,
        )
        return torch.from_numpy(made).to(self.model.device)

    def train(self, epochs: int) -> None:
        for _ in range(epochs):
            for batch in self._shuffled():
                self.seen[batch] = self.embedded([self.texts[place] for place in batch])
                self._step(batch)

    def go_on(self, epochs: int) -> None:
        """Train up to this many epochs on the embeddings, which are the same in every epoch."""
        while self.epochs < epochs:
            for batch in self._shuffled():
                self._step(batch)

    def score(self, embeddings: torch.Tensor) -> NDArray[np.float32]:
        with torch.inference_mode():
            return self.head(embeddings)[:, 0].cpu().numpy()

    def loss(self) -> float:
        with torch.inference_mode():
            return float(nn.functional.mse_loss(self.head(self.seen)[:, 0], self.labels))

    def _shuffled(self) -> list[list[int]]:
        self.epochs += 1
        return [self.batches[place] for place in self.random.permutation(len(self.batches))]

    def _step(self, batch: list[int]) -> None:
        self.optimizer.zero_grad()
        nn.functional.mse_loss(self.head(self.seen[batch])[:, 0], self.labels[batch]).backward()
        self.optimizer.step()


def columns(gold: list[dict]) -> dict[str, NDArray[np.float64]]:
    return {
        name: np.array([float(row[column]) for row in gold])
        for name, column in (("LLM", LABEL), ("humans", "human_score"))
    }


def report(rows: dict[str, tuple[NDArray[np.float64], NDArray[np.float32]]], gold: list[dict], documents: int) -> None:
    first, *_ = rows.values()
    print(
        f"{documents} documents, {torch.get_num_threads()} threads, torch {torch.__version__}, {platform.machine()}\n\n"
        "| | s | CPU s | times as fast (CPU s) | Spearman, LLM | difference | Spearman, humans | difference |\n"
        "|---|---|---|---|---|---|---|---|"
    )
    for name, (seconds, scores) in rows.items():
        cells = []
        for labels in columns(gold).values():
            cells += [f"{spearman(scores, labels):.3f}"]
            cells += ["" if scores is first[1] else difference(scores, first[1], labels)]
        times = f"{seconds[0]:.1f} | {seconds[1]:.1f} | {first[0][1] / seconds[1]:.1f}"
        print(f"| {name} | {times} | {' | '.join(cells)} |")


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
