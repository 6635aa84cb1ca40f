"""Windows: how much of a document fits into a question, and how longer documents are cut or split."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from ml_filter.annotation.config import AskConfig
from ml_filter.annotation.prompts import SLOT, Question
from ml_filter.annotation.tokenizers import Tokenizer
from ml_filter.errors import ConfigError

_TEMPLATE_TOKENS = 32
"""Reserve for a chat template that only the server knows, and for tokens that merge at the ends of the text."""


class Windows:
    """Cuts documents for one question into windows of at most `limit` tokens, or characters without a tokenizer."""

    def __init__(self, config: AskConfig, question: Question, tokenizer: Tokenizer | None, limit: int) -> None:
        self.question, self.tokenizer, self.limit = question, tokenizer, limit
        self.max_windows = config.windows_per_document

    @classmethod
    async def fit(
        cls, config: AskConfig, question: Question, tokenizer: Tokenizer | None, context_tokens: int | None
    ) -> Windows:
        """Windows that fit into the context next to the question and the answer.

        Raises:
            ConfigError: the context length is unknown, or the question and its answer alone fill it.
        """
        if tokenizer is None:
            return cls(config, question, None, question.max_text_chars)
        if context_tokens is None:
            if question.max_text_tokens is None:
                raise ConfigError(
                    "the endpoint does not report its context length; set context_tokens (--context-tokens)"
                )
            return cls(config, question, tokenizer, question.max_text_tokens)
        frame = await tokenizer.count((question.system or "") + question.text.replace(SLOT, ""))
        answer = config.answer_tokens(question.max_tokens)
        room = context_tokens - frame - answer - _TEMPLATE_TOKENS
        if room < 1:
            raise ConfigError(
                f"prompt {question.name} ({frame:,} tokens) and its answer ({answer:,}) leave no room for text in a "
                f"context of {context_tokens:,} tokens"
            )
        return cls(config, question, tokenizer, min(question.max_text_tokens or room, room))

    def clean(self, document: str) -> str:
        """Neutralise what could end the document inside the question, with the tokenizer's own special tokens."""
        text = self.question.clean(document)
        special = self.tokenizer.special_token if self.tokenizer else None
        return special.sub(lambda match: match[0] + " ", text) if special else text

    async def pieces(self, document: str) -> tuple[Sequence[str], bool]:
        """The windows of a document, and whether text after the last one is left out."""
        # Clean before cutting: neutralising adds characters, and a cut through a special token could hide it.
        text = self.clean(document)
        pieces: list[str] = []
        while text and len(pieces) < self.max_windows:
            pieces.append(await self._head(text))
            text = text[len(pieces[-1]) :]
        return pieces, bool(text)

    async def _head(self, text: str) -> str:
        if self.tokenizer is None:
            return text[: self.limit]
        if len(text) <= self.limit and len(text.encode()) <= self.limit:  # no token is shorter than a byte
            return text
        return await self.tokenizer.head(text, self.limit)


_COMBINE: dict[str, Callable[[Sequence[float]], float]] = {
    "mean": statistics.fmean,
    "max": max,
    "min": min,
    "median": statistics.median,
}


def combine(scores: Sequence[float], method: str) -> float:
    """Combine the scores of the windows of a document: `mean`, `max`, `min` or `median`."""
    return _COMBINE[method](scores)
