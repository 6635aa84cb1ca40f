"""Run a model over texts in batches of like length under a token budget, and give results in input order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase


def length_batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Indices in batches, longest first, each with at most `batch_tokens` tokens after padding (at least one text).

    Longest first, so that a batch that does not fit into memory fails at the start and not at the end.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    start = 0
    while start < len(order):
        size = max(1, batch_tokens // max(1, lengths[order[start]]))
        yield order[start : start + size]
        start += size


def run_in_batches(
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    forward: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    *,
    max_tokens: int,
    batch_tokens: int,
    device: torch.device,
) -> NDArray[np.float32]:
    """`forward(input_ids, attention_mask)` over all texts; its rows [texts, ...] in the order of the texts."""
    import torch

    encoded = tokenizer(list(texts), truncation=True, max_length=max_tokens)["input_ids"]
    results: NDArray[np.float32] | None = None
    padding = tokenizer.pad_token_id or 0
    with torch.inference_mode():
        for indices in length_batches([len(ids) for ids in encoded], batch_tokens):
            longest = len(encoded[indices[0]])
            ids = np.full((len(indices), longest), padding, dtype=np.int64)
            mask = np.zeros((len(indices), longest), dtype=np.int64)
            for row, index in enumerate(indices):
                ids[row, : len(encoded[index])] = encoded[index]
                mask[row, : len(encoded[index])] = 1
            made = forward(torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device))
            rows = made.float().cpu().numpy()
            if results is None:
                results = np.empty((len(encoded), *rows.shape[1:]), dtype=np.float32)
            results[indices] = rows
    return results if results is not None else np.empty((0,), dtype=np.float32)
