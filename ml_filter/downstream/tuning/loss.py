"""The held-out loss of a tuned model beside that of its base, with paired intervals over documents."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ml_filter.downstream.tuning.base import load_model, quiet_libraries
from ml_filter.downstream.tuning.chat import IGNORED
from ml_filter.downstream.tuning.config import TuneConfig
from ml_filter.downstream.tuning.train import matrix_dtype
from ml_filter.heads.device import choose_device
from ml_filter.progress import progress
from ml_filter.statistics.intervals import Array, Figure, Resampling, divide, resampled_figures

if TYPE_CHECKING:
    import torch

Sequences = list[tuple[Sequence[int], Sequence[int]]]
"""The ids of each conversation, and their labels."""


def held_out_figures(base: Path, tuned: Path, held_out: Path, config: TuneConfig) -> dict[str, Figure]:
    """Compare two models, directories of transformers, on the tokens in an Arrow stream.

    Returns:
        For sft, per token of the answers: `base_loss`, `loss`, `loss_change` (tuned minus base), `base_perplexity`,
        `perplexity`. For dpo, per pair: `base_loss`, which is ln 2, `loss`, `loss_change`, the share `accuracy` of
        pairs whose chosen answer gained more than the rejected one, and the mean `margin` of the two rewards (Rafailov
        et al. 2023). Intervals are percentile bootstrap intervals over documents.
    """
    from datasets import Dataset

    rows: list[dict[str, Any]] = Dataset.from_file(str(held_out)).to_list()
    documents = [row["document"] for row in rows]
    if config.method == "sft":
        return _sft_figures(base, tuned, [(row["input_ids"], row["labels"]) for row in rows], documents, config)
    pairs: Sequences = []
    for row in rows:
        for side in (row["chosen_ids"], row["rejected_ids"]):
            masked = [IGNORED] * len(row["prompt_ids"])
            pairs.append((row["prompt_ids"] + side, masked + side))
    return _dpo_figures(base, tuned, pairs, documents, config)


def _sft_figures(
    base: Path, tuned: Path, sequences: Sequences, documents: list[str], config: TuneConfig
) -> dict[str, Figure]:
    counts = np.array([sum(label != IGNORED for label in labels[1:]) for _, labels in sequences], np.float64)
    losses = [-log_probabilities(model, sequences, config) for model in (base, tuned)]

    def statistic(rows: Array, weights: Array) -> dict[str, Array]:
        sums = weights @ rows
        before, after = divide(sums[:, 0], sums[:, 2]), divide(sums[:, 1], sums[:, 2])
        return {
            "base_loss": before,
            "loss": after,
            "loss_change": after - before,
            "base_perplexity": np.exp(before),
            "perplexity": np.exp(after),
        }

    return resampled_figures(_by_document(np.stack([*losses, counts], 1), documents), statistic, Resampling())


def _dpo_figures(
    base: Path, tuned: Path, sequences: Sequences, documents: list[str], config: TuneConfig
) -> dict[str, Figure]:
    before, after = (log_probabilities(model, sequences, config) for model in (base, tuned))
    chosen, rejected = ((after - before)[side::2] for side in (0, 1))
    margins = config.beta * (chosen - rejected)
    losses = np.logaddexp(0, -margins)

    def statistic(rows: Array, weights: Array) -> dict[str, Array]:
        sums = weights @ rows
        loss, accuracy, margin = (divide(sums[:, column], sums[:, 3]) for column in range(3))
        none = np.full_like(loss, math.log(2))
        return {"base_loss": none, "loss": loss, "loss_change": loss - none, "accuracy": accuracy, "margin": margin}

    rows = _by_document(np.stack([losses, margins > 0, margins, np.ones(len(margins))], 1), documents)
    return resampled_figures(rows, statistic, Resampling(), {"accuracy": len(rows)})


def _by_document(rows: Array, documents: Sequence[str]) -> Array:
    """Sums of the rows of each document: documents, not conversations, are independent."""
    _, group = np.unique(documents, return_inverse=True)
    sums = np.zeros((group.max() + 1, rows.shape[1]))
    np.add.at(sums, group, rows)
    return sums


def log_probabilities(model: Path, sequences: Sequences, config: TuneConfig) -> NDArray[np.float64]:
    """The summed log-probability of the labelled tokens of each sequence, by a model in a directory."""
    import torch

    device = choose_device("auto")
    with quiet_libraries():
        loaded = load_model(model, dtype=matrix_dtype(config))
    loaded = loaded.to(device).eval()
    order = np.argsort([-len(ids) for ids, _ in sequences], kind="stable")
    sums = np.zeros(len(sequences))
    with torch.inference_mode(), progress("Measuring held-out loss", len(sequences)) as bar:
        for first in range(0, len(order), config.batch_size):
            batch = order[first : first + config.batch_size]
            ids, labels = (
                _padded([sequences[index][part] for index in batch], fill).to(device)
                for part, fill in ((0, 0), (1, IGNORED))
            )
            mask = _padded([[1] * len(sequences[index][0]) for index in batch], 0).to(device)
            logits = loaded(input_ids=ids, attention_mask=mask).logits[:, :-1]
            rows, positions = (labels[:, 1:] != IGNORED).nonzero(as_tuple=True)
            chosen = torch.nn.functional.cross_entropy(
                logits[rows, positions].float(), labels[:, 1:][rows, positions], reduction="none"
            )
            sums[batch] = torch.zeros(len(batch), dtype=torch.float64).index_add(0, rows.cpu(), -chosen.double().cpu())
            bar.advance(len(batch))
    return sums


def _padded(rows: Sequence[Sequence[int]], fill: int) -> torch.Tensor:
    import torch

    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=fill)
