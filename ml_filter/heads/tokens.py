"""Token ids of texts, truncated to what a model reads. Only as much of a long text is tokenised as is kept.

Some encoders were trained with a prefix before each text that says what it is (E5's `passage: `). The prefix is stored
on the tokenizer, so that training, scoring and serving read the same.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PREFIX = "ml_filter_text_prefix"
_CHARACTERS_PER_TOKEN = 6
"""More than in most languages. A text that needs more characters is tokenised again, four times as far."""
_SPACE = re.compile(r"\s")
_SPACE_WITHIN = 1000
"""A text without white space in so many characters is tokenised to its end."""
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
