"""Token ids of texts, cut to what a model reads: of a long text only as much is tokenised as is kept.

Some encoders were trained with words before each text that say what it is (E5's `passage: `). The tokenizer that is
handed around carries them, so that training, scoring and serving read the same.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PREFIX = "ml_filter_text_prefix"
_CHARACTERS_A_TOKEN = 6
"""More than most languages have; texts that turn out to have more are tokenised again, further."""
_SPACE = re.compile(r"\s")
_FAR = 1000
"""No white space for so many characters: the text is tokenised whole."""
_PROBE = (
    "Water boils at 100 degrees, doesn't it?  Größe und Übermaß.\n\nВода кључа на сто степени; 水は百度で沸騰する。 "  # noqa: RUF001
    "الماء يغلي عند مئة درجة\tपानी सौ डिग्री पर उबलता है — <b>№ 5</b> \u200b e\u0301 ﬁn 😀 😀. "
)


def token_ids(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> list[list[int]]:
    """The ids [texts][tokens] that the tokenizer gives when it truncates to `max_tokens`, special tokens among them.

    Where the tokens of a text's beginning, up to white space, are the first tokens of the text, as a probe tells, the
    rest is left out and the Rust tokenizer is asked directly; else the tokenizer is called as usual.
    """
    texts = _with_prefix(texts, tokenizer)
    if not _keeps_prefixes(tokenizer):
        return _whole_ids(texts, tokenizer, max_tokens)
    made: list[list[int]] = [[] for _ in texts]
    waiting, size = list(range(len(texts))), _CHARACTERS_A_TOKEN * max_tokens
    while waiting:
        parts = [_cut(texts[place], size) for place in waiting]
        short = []
        for place, part, ids in zip(waiting, parts, _fast_ids(parts, tokenizer, max_tokens), strict=True):
            if len(ids) < max_tokens and len(part) < len(texts[place]):
                short.append(place)
            else:
                made[place] = ids
        waiting, size = short, 4 * size
    return made


def usual_ids(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> list[list[int]]:
    """The same by the tokenizer's own call, of whole texts."""
    return _whole_ids(_with_prefix(texts, tokenizer), tokenizer, max_tokens)


def set_text_prefix(tokenizer: PreTrainedTokenizerBase, prefix: str) -> None:
    """From now on the functions of this module read `prefix` before each text."""
    vars(tokenizer)[_PREFIX] = prefix


def prefix_tokens(tokenizer: PreTrainedTokenizerBase) -> int:
    """How many tokens the prefix takes."""
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


def _cut(text: str, size: int) -> str:
    """At least `size` characters of a text, up to white space."""
    if len(text) <= size:
        return text
    space = _SPACE.search(text, size, size + _FAR)
    return text if space is None else text[: space.start()]


@lru_cache(maxsize=16)
def _keeps_prefixes(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether leaving out the rest of a text leaves its first tokens as they are, and the direct way gives the same."""
    if not tokenizer.is_fast:
        return False
    spaces = [space.start() for space in _SPACE.finditer(_PROBE)]
    parts = [_PROBE[:space] for space in spaces if space]
    whole = _whole_ids([_PROBE], tokenizer, len(_PROBE) * 4)[0]
    for part, ids in zip(parts, _fast_ids(parts, tokenizer, len(_PROBE) * 4), strict=True):
        # As long as the part's own end, with its special token, does not count.
        tokens = len(ids) - tokenizer.num_special_tokens_to_add()
        if tokens and _fast_ids([part], tokenizer, len(ids)) != _whole_ids([_PROBE], tokenizer, len(ids)):
            return False
    return _fast_ids([_PROBE], tokenizer, len(_PROBE) * 4)[0] == whole
