"""What a ledger promises, wherever it is.

The key covers everything that shapes an answer, so answers to another prompt, model or text never mix, and a ledger can
be shared between outputs.

Tokens are never subtracted: an answer that is replaced or dropped was still paid for.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Self


class Key(NamedTuple):
    """A document by id and text, a question (digest of prompt, annotator and sampling settings) and a vote."""

    document_id: str
    text_digest: str
    question: str
    vote: int


class Paid(NamedTuple):
    """Tokens spent: as reported by the server, and the most that tries without a report may have used in addition."""

    prompt: int
    completion: int
    assumed: int


class Ledger(ABC):
    """The answers of one run, or of several runs one after the other; a second writer at the same time is refused.

    `record` and `forget` are called from the event loop, which they must not block for long; the other methods may be
    called from another thread at the same time. What was recorded is seen by all methods at once, and is safe from a
    kill at the latest when `flush` returns.
    """

    @abstractmethod
    def record(self, key: Key, window: int, row: Mapping[str, Any], assumed: tuple[int, int] = (0, 0)) -> None:
        """Keep the answer about one window. It replaces an earlier one; the tokens of both add up.

        Args:
            row: fields of the annotation; `windows` is the number of windows of the document.
            assumed: prompt and completion tokens that may have been used in addition without a report by the server.
        """

    @abstractmethod
    def forget(self, key: Key) -> None:
        """Drop the answers to `key`, because its document is now cut into other windows; their tokens stay counted."""

    @abstractmethod
    def statuses(self, key: Key) -> dict[int, str]:
        """Status by window, `open` for windows without an answer; empty before the first answer to `key`."""

    @abstractmethod
    def answers(self, key: Key) -> tuple[list[dict[str, Any]], Paid]:
        """The answers to `key` in window order, and what they cost, with answers that were replaced or dropped."""

    @abstractmethod
    def tokens_used(self, questions: Sequence[str]) -> tuple[int, int]:
        """Most prompt and completion tokens that the answers to `questions` may have cost, counted as in `answers`."""

    @abstractmethod
    def is_worthless(self) -> bool:
        """Whether the ledger has no answer and nothing in it may have cost anything."""

    @abstractmethod
    def close(self) -> None:
        """Save what is not saved yet, and let the next writer in."""

    def has_room(self) -> bool:
        """Whether another answer may be asked for now; False while too many are not saved yet.

        Raises:
            MlFilterError: answers can no longer be saved.
        """
        return True

    def wait_for_room(self) -> None:  # noqa: B027
        """Block until `has_room`; raises as it does. Not for the event loop."""

    def flush(self) -> None:  # noqa: B027
        """Block until everything that was recorded is saved; raises as `has_room`. Not for the event loop."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
