"""Cheap checks of instructions, before a rating of them is paid for: rules of form, and grounding in the passage.

Grounding is the share of the content words of an output that the passage has. Words are compared by their first
letters, so that inflection does not count; in scripts without spaces, pairs of characters stand for words. A number
that the passage does not have is the most frequent invention, and has a separate reason.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

from ml_filter.downstream.instruct.config import CheckConfig
from ml_filter.prepare.ngrams import words

_STEM = 6
"""Letters of a word that are compared."""
_CONTENT = 4
"""Shorter words are mostly articles, pronouns and prepositions."""
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_REFUSAL = re.compile(
    r"""(?xi) \b as\ an?\ (?: AI | artificial\ intelligence | (?:large\ )? language\ model ) \b
    | \b I(?:'m|\ am)\ (?:just\ )? an?\ (?: AI | language\ model ) \b
    | ^ \W* (?: I(?:'m|\ am)\ (?:very\ )? sorry | sorry | I\ apologi[sz]e ) \b
    | \b I\ (?: can(?:no|')t | am\ unable\ to | am\ not\ able\ to | do\ not | don't )\ (?: help | assist | answer
        | provide | fulfil | comply | access | browse | have\ access )"""
)
_MENTIONS_SOURCE = re.compile(
    r"(?i)\b(?:(?:the|this|given|above|following|provided) (?:passage|text|excerpt|document|article|paragraph|source)"
    r"|(?:mentioned|described|stated|discussed|given) (?:above|in the (?:passage|text|document|article)))\b"
)
_PLACEHOLDER = re.compile(
    r"""(?xi) [\W_]* (?: instruction | input | output | answer | response | text | none | n/?a | null | todo | string
    | (?:your|the|an?)\ \w+ )? [\W_]*"""
)
_MENTIONS_PROMPT = re.compile(
    r"""(?xi) \b (?:given|original|rewritten|evolved)\ (?:prompt|task|instruction)s? \b | [=]{5,}"""
)


class Triple(NamedTuple):
    """An instruction, the input that it works on (may be empty) and the output that an assistant should give."""

    instruction: str
    input: str
    output: str

    @property
    def task(self) -> str:
        """The instruction with its input, as a user would ask it."""
        return f"{self.instruction}\n\n{self.input}" if self.input else self.instruction

    @property
    def text(self) -> str:
        """All of it as a document."""
        middle = f"Input: {self.input}\n\n" if self.input else ""
        return f"Instruction: {self.instruction}\n\n{middle}Output: {self.output}"


class Problem(NamedTuple):
    """Why an instruction is dropped: a code, and what it is about."""

    reason: str
    detail: str = ""


class Checks:
    """The rules of a configuration."""

    def __init__(self, config: CheckConfig) -> None:
        self.config = config

    @cached_property
    def _keywords(self) -> Sequence[re.Pattern[str]]:
        return [re.compile(keyword) for keyword in self.config.keywords]

    def problem(self, triple: Triple, passage: str, parent: Triple | None = None) -> Problem | None:
        """The first reason to drop an instruction; None: it passes.

        Args:
            passage: that it was written from.
            parent: the instruction that it was evolved from.
        """
        config = self.config
        problem = self._of_value("instruction", triple.instruction) or self.output_problem(triple)
        if problem is None and not triple.input and (match := _MENTIONS_SOURCE.search(triple.instruction)):
            problem = Problem("mentions_source", match[0])
        if problem := problem or (parent and self._evolution(triple, parent)):
            return problem
        # The input of an evolved instruction may be invented data that its output is about.
        source = f"{passage}\n{triple.input}" if parent else passage
        if config.numbers_in_source and (invented := unsupported_numbers(triple, source)):
            return Problem("number_not_in_source", ", ".join(invented[:5]))
        share = grounding(triple.output, source)
        if share is not None and share < config.min_grounding:
            return Problem("not_grounded", f"{share:.2f} of its content words are in the passage")
        return None

    def _of_value(self, name: str, value: str) -> Problem | None:
        if _PLACEHOLDER.fullmatch(value):
            return Problem("empty", f"{name} {value[:40]!r}")
        if match := _REFUSAL.search(value):
            return Problem("refusal", match[0])
        if match := next(filter(None, (keyword.search(value) for keyword in self._keywords)), None):
            return Problem("keyword", match[0])
        count, low, high = (
            len(words(value)),
            getattr(self.config, f"min_{name}_words"),
            getattr(self.config, f"max_{name}_words"),
        )
        return None if low <= count <= high else Problem(f"{name}_length", f"{count} words")

    def output_problem(self, triple: Triple) -> Problem | None:
        """The first reason to drop an output, whatever it was written from; None: it passes."""
        if problem := self._of_value("output", triple.output):
            return problem
        if (output := words(triple.output)) in (words(triple.instruction), words(triple.input)):
            return Problem("output_is_input", "the output repeats the instruction or the input")
        if (share := copied_share(output, words(triple.instruction))) > self.config.max_copied_share:
            return Problem("echo", f"{share:.2f} of its 2-grams are in the instruction")
        if triple.output.count("```") % 2:
            return Problem("open_code_block", "the output ends inside a code block")
        if (share := repeated_share(output)) > self.config.max_repeated_share:
            return Problem("repetitive", f"{share:.2f} of its 3-grams are repeated")
        return None

    def _evolution(self, triple: Triple, parent: Triple) -> Problem | None:
        task, before = words(triple.task), words(parent.task)
        is_same = all(
            words(getattr(triple, name)) == words(getattr(parent, name)) for name in ("instruction", "output")
        )
        if task == before or is_same:
            return Problem("unchanged", "the instruction is that of its parent")
        if match := _MENTIONS_PROMPT.search(triple.instruction):
            return Problem("mentions_prompt", match[0])
        if (share := copied_share(task, before)) > self.config.max_copied_share:
            return Problem("copy", f"{share:.2f} of its 2-grams are in its parent")
        return None


def grounding(output: str, source: str) -> float | None:
    """The share of the content words of an output that a source has, in [0, 1]; None: it has no content words."""
    content = list(_content(words(output)))
    if not content:
        return None
    supported = set(_content(words(source)))
    return sum(word in supported for word in content) / len(content)


def _content(tokens: Sequence[str]) -> Iterator[str]:
    for first, second in pairwise([*tokens, ""]):
        if len(first) >= _CONTENT:
            yield first[:_STEM]
        elif _is_character(first) and _is_character(second):
            yield first + second


def _is_character(token: str) -> bool:
    """Whether a word is a single character of a script without spaces."""
    return len(token) == 1 and ord(token) > 0x0E00 and token.isalpha()


def unsupported_numbers(triple: Triple, source: str) -> list[str]:
    """The numbers of an output of two digits and more that neither the source nor the task has.

    Small numbers count steps and items of lists."""
    supported = {_digits(number) for number in _NUMBER.findall(f"{source} {triple.task}")}
    numbers = dict.fromkeys(_NUMBER.findall(triple.output))
    return [number for number in numbers if len(_digits(number)) > 1 and _digits(number) not in supported]


def _digits(number: str) -> str:
    return re.sub(r"[.,]", "", number)


def copied_share(tokens: Sequence[str], source: Sequence[str]) -> float:
    """The share of the distinct word 2-grams of a text that a source has; 1 for a text of a single word."""
    pairs = set(pairwise(tokens))
    return len(pairs & set(pairwise(source))) / len(pairs) if pairs else 1.0


def repeated_share(tokens: Sequence[str]) -> float:
    """The share of the word 3-grams of a text that occur earlier in it."""
    counts = Counter(zip(tokens, tokens[1:], tokens[2:], strict=False))
    total = sum(counts.values())
    return (total - len(counts)) / total if total else 0.0
