"""Run a model over texts in batches of similar length under a token budget; results keep the order of the texts."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from loguru import logger

from ml_filter.heads.tokens import prefix_tokens, token_ids

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase


def length_batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Batches of indices, longest texts first, each with at most `batch_tokens` padded tokens, but at least one text.

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
    on_shrink: Callable[[int], None] = lambda _: None,
) -> NDArray[np.float32]:
    """Call `forward(input_ids, attention_mask)` on all texts; returns its rows [texts, ...] in the order of the texts.

    If the device runs out of memory, the batch and those after it are halved.

    Args:
        on_shrink: called with the new limit of padded tokens per batch.

    Raises:
        torch.OutOfMemoryError: a single text does not fit either.
    """
    import torch

    encoded = token_ids(texts, tokenizer, max_tokens)
    lengths = [len(ids) for ids in encoded]
    padding = tokenizer.pad_token_id or 0
    waiting = deque(length_batches(lengths, batch_tokens))
    outputs: list[tuple[list[int], torch.Tensor]] = []
    with torch.inference_mode():
        while waiting:
            indices = waiting.popleft()
            try:
                batch = _pad([encoded[index] for index in indices], padding, device)
                outputs.append((indices, forward(*batch).float()))
                continue
            except torch.OutOfMemoryError:
                if len(indices) == 1:
                    raise
            # Outside the except block, where the exception still references the tensors of the failed forward.
            half = len(indices) // 2
            batch_tokens = half * max(lengths[index] for index in indices)
            logger.warning(f"{device} is out of memory with {len(indices)} texts per batch; continuing with {half}")
            remaining = [index for batch_indices in (indices, *waiting) for index in batch_indices]
            waiting = deque(
                [remaining[position] for position in positions]
                for positions in length_batches([lengths[index] for index in remaining], batch_tokens)
            )
            on_shrink(batch_tokens)
            if device.type == "cuda":
                torch.cuda.empty_cache()
    # Copied to the host only now: waiting for each result would leave the GPU idle while the next batch is padded.
    if not outputs:
        return np.empty((0,), dtype=np.float32)
    results = np.empty((len(encoded), *outputs[0][1].shape[1:]), dtype=np.float32)
    for indices, rows in outputs:
        results[indices] = rows.cpu().numpy()
    return results


def _pad(encoded: Sequence[Sequence[int]], padding: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask [texts, longest], on the device."""
    import torch

    ids = np.full((len(encoded), max(map(len, encoded))), padding, dtype=np.int64)
    mask = np.zeros_like(ids)
    for row, row_ids in enumerate(encoded):
        ids[row, : len(row_ids)] = row_ids
        mask[row, : len(row_ids)] = 1
    both = torch.from_numpy(np.stack([ids, mask]))
    both = both.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else both.to(device)
    return both[0], both[1]


def split_windows(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_tokens: int, windows: int
) -> tuple[list[str], list[int]]:
    """Split each text into at most `windows` pieces that fit into `max_tokens` with prefix and special tokens.

    Returns the pieces, and for each piece the index of its text. With one window the pieces are the texts themselves,
    which are truncated when they are tokenised.
    """
    if windows == 1:
        return list(texts), list(range(len(texts)))
    room = max_tokens - tokenizer.num_special_tokens_to_add() - prefix_tokens(tokenizer)
    encoded = tokenizer(
        list(texts), add_special_tokens=False, return_offsets_mapping=True, truncation=True, max_length=windows * room
    )
    pieces: list[str] = []
    owners: list[int] = []
    for index, (text, offsets) in enumerate(zip(texts, encoded["offset_mapping"], strict=True)):
        # Each piece ends where the next one starts, so that no white space between two tokens is lost.
        starts = [offsets[position][0] for position in range(0, len(offsets), room)] or [0]
        ends = [*starts[1:], offsets[-1][1] if offsets else len(text)]
        pieces += [text[start:end] for start, end in zip(starts, ends, strict=True)]
        owners += [index] * len(starts)
    return pieces, owners


def combine_windows(
    scores: NDArray[Any], owners: NDArray[np.int64], texts: int, combine: Literal["mean", "max"]
) -> NDArray[Any]:
    """Combine scores [windows, criteria] into scores [texts, criteria]: the mean or maximum of each text's windows.

    `owners` [windows] has the index of each window's text. Every text has at least one window, so that no sum stays
    empty; the mean weights all windows of a text equally, including a short last one.
    """
    if len(scores) == texts:
        return scores
    if combine == "max":
        highest = np.full((texts, scores.shape[1]), -np.inf, scores.dtype)
        np.maximum.at(highest, owners, scores)
        return highest
    sums = np.zeros((texts, scores.shape[1]), scores.dtype)
    np.add.at(sums, owners, scores)
    return sums / np.bincount(owners, minlength=texts)[:, None]
