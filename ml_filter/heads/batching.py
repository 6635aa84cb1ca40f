"""Tokenise texts and run a model over them in batches of similar length; results keep the order of the texts.

Texts are truncated to what a model reads; only the part of a long text that is kept is tokenised.

Some encoders were trained with a prefix before each text that says what it is (E5's `passage: `). The prefix is stored
on the tokenizer, so that training, scoring and serving read the same.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from loguru import logger
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

# --- Tokens

_PREFIX = "ml_filter_text_prefix"
_CHARACTERS_PER_TOKEN = 6
"""More than in most languages. A text that needs more characters is tokenised again, four times as far."""
_SPACE = re.compile(r"\s")
_SPACE_WITHIN = 1000
"""A text without white space in this many characters is tokenised to its end."""
_PROBE = (
    "Water boils at 100 degrees, doesn't it?  Größe und Übermaß.\n\nВода кључа на сто степени; 水は百度で沸騰する。 "  # noqa: RUF001
    "الماء يغلي عند مئة درجة\tपानी सौ डिग्री पर उबलता है — <b>№ 5</b> \u200b e\u0301 ﬁn 😀 😀. "
)


def token_ids(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> list[list[int]]:
    """The ids [texts][tokens] that the tokenizer returns with truncation to `max_tokens`, including special tokens.

    If cutting a text at white space leaves the tokens before the cut unchanged (a probe decides), only the start of a
    long text is tokenised, by the Rust tokenizer directly. Otherwise this is `usual_ids`.
    """
    texts = _with_prefix(texts, tokenizer)
    if not _can_cut(tokenizer):
        return _whole_ids(texts, tokenizer, max_tokens)
    ids: list[list[int]] = [[] for _ in texts]
    waiting, size = list(range(len(texts))), _CHARACTERS_PER_TOKEN * max_tokens
    while waiting:
        starts = [_start_of(texts[index], size) for index in waiting]
        too_short = []
        for index, start, start_ids in zip(waiting, starts, _fast_ids(starts, tokenizer, max_tokens), strict=True):
            if len(start_ids) < max_tokens and len(start) < len(texts[index]):
                too_short.append(index)
            else:
                ids[index] = start_ids
        waiting, size = too_short, 4 * size
    return ids


def usual_ids(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> list[list[int]]:
    """The same ids from the tokenizer's ordinary call, which reads whole texts."""
    return _whole_ids(_with_prefix(texts, tokenizer), tokenizer, max_tokens)


def set_text_prefix(tokenizer: PreTrainedTokenizerBase, prefix: str) -> None:
    """Put `prefix` before each text that this module tokenises with this tokenizer."""
    vars(tokenizer)[_PREFIX] = prefix


def prefix_tokens(tokenizer: PreTrainedTokenizerBase) -> int:
    """Number of tokens of the prefix."""
    ids: list[int] = tokenizer(_prefix(tokenizer), add_special_tokens=False)["input_ids"]
    return len(ids)


def _prefix(tokenizer: PreTrainedTokenizerBase) -> str:
    return str(vars(tokenizer).get(_PREFIX, ""))


def _with_prefix(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> Sequence[str]:
    prefix = _prefix(tokenizer)
    return [prefix + text for text in texts] if prefix else texts


def _whole_ids(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> list[list[int]]:
    ids: list[list[int]] = tokenizer(list(texts), truncation=True, max_length=max_tokens)["input_ids"]
    return ids


def _fast_ids(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> list[list[int]]:
    rust = tokenizer.backend_tokenizer
    rust.enable_truncation(max_tokens)
    rust.no_padding()
    return [encoding.ids for encoding in rust.encode_batch_fast(texts)]


def _start_of(text: str, size: int) -> str:
    """At least `size` characters of a text, up to white space."""
    if len(text) <= size:
        return text
    space = _SPACE.search(text, size, size + _SPACE_WITHIN)
    return text if space is None else text[: space.start()]


@lru_cache(maxsize=16)
def _can_cut(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a cut at white space leaves the tokens before it unchanged, and the Rust call returns the usual ids.

    Tested on a text in several scripts, cut at each white space. Tokenizers whose tokens reach across white space
    fail the test, and so do slow tokenizers, which have no Rust part.
    """
    if not tokenizer.is_fast:
        return False
    limit = len(_PROBE) * 4
    starts = [_PROBE[: space.start()] for space in _SPACE.finditer(_PROBE) if space.start()]
    for start, ids in zip(starts, _fast_ids(starts, tokenizer, limit), strict=True):
        # Truncated to the same number of tokens, both end with the same special token.
        tokens = len(ids) - tokenizer.num_special_tokens_to_add()
        if tokens and _fast_ids([start], tokenizer, len(ids)) != _whole_ids([_PROBE], tokenizer, len(ids)):
            return False
    return _fast_ids([_PROBE], tokenizer, limit) == _whole_ids([_PROBE], tokenizer, limit)


# --- Batches


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
                batch = pad([encoded[index] for index in indices], padding, device)
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


def pad(encoded: Sequence[Sequence[int]], padding: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
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
