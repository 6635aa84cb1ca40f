"""How much of a document goes into a question: cut to what the model's context holds, or split into windows."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Protocol

from ml_filter.annotation.client import Client, Endpoint, RequestFailed
from ml_filter.annotation.prompts import SLOT, Prompt
from ml_filter.errors import ConfigError, EndpointError
from ml_filter.settings import AnnotateConfig

_TEMPLATE_TOKENS = 32
"""Left free for a chat template that only the server knows and for tokens that merge at the text's ends."""


class Tokenizer(Protocol):
    """Counts and cuts text by a model's tokens."""

    async def count(self, text: str) -> int:
        """Tokens of a text, without special ones."""

    async def split(self, text: str, size: int) -> Sequence[str]:
        """The text in pieces of at most `size` tokens; joined, they are the text."""


class LocalTokenizer:
    """A Hugging Face tokenizer, by name or directory."""

    def __init__(self, name: str) -> None:
        from transformers import AutoTokenizer

        try:
            self.tokenizer = AutoTokenizer.from_pretrained(name)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"tokenizer {name!r} cannot be loaded; give a Hub name or a directory: {error}"
            ) from error
        if not self.tokenizer.is_fast:
            raise ConfigError(f"tokenizer {name!r} does not say where its tokens stand in the text (no fast tokenizer)")

    async def count(self, text: str) -> int:
        """Tokens of a text, without special ones."""
        return len(self._encode(text))

    async def split(self, text: str, size: int) -> Sequence[str]:
        """The text in pieces of at most `size` tokens."""
        starts = [start for start, _ in self._encode(text)]
        cuts = [0, *starts[size::size], len(text)]
        return [text[a:b] for a, b in pairwise(cuts) if a < b] or [text]

    def _encode(self, text: str) -> Sequence[tuple[int, int]]:
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return encoded["offset_mapping"]  # type: ignore[no-any-return]

    def render_chat(self, messages: list[dict[str, str]], *, add_generation_prompt: bool) -> str:
        """Messages in the tokenizer's chat template."""
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=add_generation_prompt
                )
            )
        except ValueError as error:
            raise ConfigError(f"the tokenizer has no chat template: {error}") from error


class ServerTokenizer:
    """The endpoint's own tokenizer: `/tokenize` and `/detokenize` of vLLM and of llama.cpp's server."""

    def __init__(self, client: Client, endpoint: Endpoint) -> None:
        self.client, self.endpoint = client, endpoint

    async def count(self, text: str) -> int:
        """Tokens of a text, without special ones."""
        return len(await self._encode(text))

    async def split(self, text: str, size: int) -> Sequence[str]:
        """The text in pieces of at most `size` tokens."""
        pieces, rest = [], text
        while len(tokens := await self._encode(rest)) > size:
            # Tokens may end inside a character or be written otherwise; the length of what they spell is the cut.
            piece = rest[: max(len((await self._decode(tokens[:size])).rstrip("\ufffd")), 1)]
            pieces.append(piece)
            rest = rest[len(piece) :]
        return [*pieces, rest] if rest or not pieces else pieces

    async def _encode(self, text: str) -> list[int]:
        # llama.cpp reads `content`, vLLM `prompt`
        body = {"model": self.endpoint.model, "prompt": text, "content": text, "add_special_tokens": False}
        answer = await self._post("tokenize", body | {"add_special": False})
        return list(answer["tokens"])

    async def _decode(self, tokens: Sequence[int]) -> str:
        answer = await self._post("detokenize", {"model": self.endpoint.model, "tokens": list(tokens)})
        return str(answer["prompt"] if "prompt" in answer else answer["content"])

    async def _post(self, path: str, body: dict[str, object]) -> dict[str, list[int]]:
        try:
            return await self.client.post(self.endpoint, self.endpoint.server_url(path), body)
        except (RequestFailed, EndpointError) as error:
            raise ConfigError(
                f"{self.endpoint.server_url(path)} does not work ({error}); give --tokenizer a Hub name or directory"
            ) from error


class Windows:
    """Cuts documents for one prompt.

    Args:
        limit: tokens a piece may have, or characters where there is no tokenizer.
    """

    def __init__(self, config: AnnotateConfig, prompt: Prompt, tokenizer: Tokenizer | None, limit: int) -> None:
        self.prompt, self.tokenizer, self.limit = prompt, tokenizer, limit
        self.most = config.max_windows if config.long_documents == "windows" else 1

    @classmethod
    async def of(
        cls, config: AnnotateConfig, prompt: Prompt, tokenizer: Tokenizer | None, context_tokens: int | None
    ) -> Windows:
        """Work out how much text fits beside the question and the answer.

        Raises:
            ConfigError: the context is not known, or the question alone fills it.
        """
        if tokenizer is None:
            return cls(config, prompt, None, prompt.max_text_chars)
        if context_tokens is None and prompt.max_text_tokens is None:
            raise ConfigError(
                "the endpoint does not say how long its context is; set context_tokens (--context-tokens)"
            )
        limit = prompt.max_text_tokens
        if context_tokens is not None:
            question = await tokenizer.count((prompt.system or "") + prompt.text.replace(SLOT, ""))
            room = context_tokens - question - prompt.max_tokens - _TEMPLATE_TOKENS
            if room < 1:
                raise ConfigError(
                    f"prompt {prompt.name} ({question:,} tokens) and its answer ({prompt.max_tokens:,}) leave no room "
                    f"for text in a context of {context_tokens:,} tokens"
                )
            limit = min(limit or room, room)
        assert limit is not None
        return cls(config, prompt, tokenizer, limit)

    async def pieces(self, document: str) -> tuple[Sequence[str], bool]:
        """What is asked about, and whether part of the document is left out."""
        text = self.prompt.clean(document)
        if self.tokenizer is None:
            pieces: Sequence[str] = [text[i : i + self.limit] for i in range(0, len(text), self.limit)]
        elif len(text.encode()) <= self.limit:  # a token is at least one byte
            pieces = [text]
        else:
            pieces = await self.tokenizer.split(text, self.limit)
        return pieces[: self.most], len(pieces) > self.most


def combine(values: Sequence[float], how: str) -> float:
    """One score of the scores of a document's windows."""
    methods: dict[str, Callable[[Sequence[float]], float]]
    methods = {"mean": statistics.fmean, "max": max, "min": min, "median": statistics.median}
    return methods[how](values)
