"""Run a model over texts in batches of like length under a token budget, and give results in input order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

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


def split_windows(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_tokens: int, windows: int
) -> tuple[list[str], list[int]]:
    """Pieces of at most `max_tokens` tokens, at most `windows` of each text, and the index of the text of each piece.

    One window is the text itself, whose end the tokenizer cuts off.
    """
    if windows == 1:
        return list(texts), list(range(len(texts)))
    room = max_tokens - tokenizer.num_special_tokens_to_add()
    encoded = tokenizer(
        list(texts), add_special_tokens=False, return_offsets_mapping=True, truncation=True, max_length=windows * room
    )
    pieces: list[str] = []
    owners: list[int] = []
    for index, (text, offsets) in enumerate(zip(texts, encoded["offset_mapping"], strict=True)):
        starts = [offsets[at][0] for at in range(0, len(offsets), room)] or [0]
        ends = [*starts[1:], offsets[-1][1] if offsets else len(text)]
        pieces += [text[start:end] for start, end in zip(starts, ends, strict=True)]
        owners += [index] * len(starts)
    return pieces, owners


def combine_windows(
    scores: NDArray[Any], owners: NDArray[np.int64], texts: int, combine: Literal["mean", "max"]
) -> NDArray[Any]:
    """Scores [windows, criteria] to scores [texts, criteria]: the mean or the highest of each text's windows."""
    if len(scores) == texts:
        return scores
    if combine == "max":
        made = np.full((texts, scores.shape[1]), -np.inf, scores.dtype)
        np.maximum.at(made, owners, scores)
        return made
    made = np.zeros((texts, scores.shape[1]), scores.dtype)
    np.add.at(made, owners, scores)
    return made / np.bincount(owners, minlength=texts)[:, None]
