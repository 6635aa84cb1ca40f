"""Run a model over texts in batches of like length under a token budget, and give results in input order."""

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
    on_shrink: Callable[[int], None] = lambda _: None,
) -> NDArray[np.float32]:
    """`forward(input_ids, attention_mask)` over all texts; its rows [texts, ...] in the order of the texts.

    Where the device has no memory for a batch, batches get half as large.

    Args:
        on_shrink: is told how many padded tokens a batch may have then.

    Raises:
        torch.OutOfMemoryError: it has none for a single text either.
    """
    import torch

    encoded = token_ids(texts, tokenizer, max_tokens)
    padding = tokenizer.pad_token_id or 0
    waiting = deque(length_batches([len(ids) for ids in encoded], batch_tokens))
    made: list[tuple[list[int], torch.Tensor]] = []
    with torch.inference_mode():
        while waiting:
            indices = waiting.popleft()
            try:
                batch = _padded([encoded[index] for index in indices], padding, device)
                made.append((indices, forward(*batch).float()))
                continue
            except torch.OutOfMemoryError:
                if len(indices) == 1:
                    raise
            # Here and not above, where the error still holds what the forward has allocated.
            half, lengths = len(indices) // 2, [len(ids) for ids in encoded]
            batch_tokens = half * max(lengths[index] for index in indices)
            logger.warning(f"{device} has no memory for {len(indices)} texts at once: going on with {half}")
            waiting = _smaller([indices, *waiting], batch_tokens, lengths)
            on_shrink(batch_tokens)
            if device.type == "cuda":
                torch.cuda.empty_cache()
    # Only now are results waited for: a GPU had the next batch while the CPU made the one after it.
    if not made:
        return np.empty((0,), dtype=np.float32)
    results = np.empty((len(encoded), *made[0][1].shape[1:]), dtype=np.float32)
    for indices, rows in made:
        results[indices] = rows.cpu().numpy()
    return results


def _padded(encoded: Sequence[Sequence[int]], padding: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask [texts, longest], on the device."""
    import torch

    ids = np.full((len(encoded), max(map(len, encoded))), padding, dtype=np.int64)
    mask = np.zeros_like(ids)
    for row, one in enumerate(encoded):
        ids[row, : len(one)] = one
        mask[row, : len(one)] = 1
    both = torch.from_numpy(np.stack([ids, mask]))
    both = both.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else both.to(device)
    return both[0], both[1]


def _smaller(batches: Sequence[list[int]], batch_tokens: int, lengths: Sequence[int]) -> deque[list[int]]:
    """The same texts in batches of at most `batch_tokens` tokens."""
    places = [index for batch in batches for index in batch]
    of = length_batches([lengths[index] for index in places], batch_tokens)
    return deque([places[at] for at in batch] for batch in of)


def split_windows(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_tokens: int, windows: int
) -> tuple[list[str], list[int]]:
    """Pieces of at most `max_tokens` tokens, at most `windows` of each text, and the index of the text of each piece.

    Special tokens and the text prefix are among these tokens, not in the pieces.

    One window is the text itself, whose end the tokenizer cuts off.
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
