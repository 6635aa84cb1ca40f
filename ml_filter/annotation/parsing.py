"""From an answer to a score and, by log-probabilities, to an expected score."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from ml_filter.annotation.grammar import AnswerError, Statement, numeral
from ml_filter.annotation.prompts import Prompt
from ml_filter.annotation.reasoning import without_reasoning
from ml_filter.annotation.responses import Answer, storable

_SHOWN_CHARS = 100
_OBJECT = re.compile(r'\{(?=\s*["}])')


class Verdict(NamedTuple):
    """A score in the prompt's range, the expected score if it is known, and the reason given for the score."""

    score: float
    expected_score: float | None
    reason: str | None = None


def read_verdict(answer: Answer, prompt: Prompt) -> Verdict:
    """Read the score from an answer, by the mode of the prompt.

    Raises:
        AnswerError: `no_logprobs`, or an error of the grammar (`Grammar.read`).
    """
    if prompt.mode == "choice":
        return _read_choice(answer, prompt) if prompt.top_logprobs else _read_written_choice(answer, prompt)
    return _read_generated(answer, prompt)


def _read_generated(answer: Answer, prompt: Prompt) -> Verdict:
    statement = prompt.grammar.read(answer.text, cut_off=answer.cut_off)
    expected = _expected_at(statement, answer, prompt)
    if prompt.mode == "json":
        reason = _json_reason(answer.text)
    else:
        reason = (without_reasoning(answer.text) or "")[: statement.start].strip(" \n*#_`<({[|\"'") or None
    return Verdict(statement.value.number, None if expected is None else prompt.calibrated(expected), reason)


def _json_reason(text: str) -> str | None:
    reasons = [value["reason"] for value in json_objects(text) if isinstance(value.get("reason"), str)]
    return storable(reasons[-1]) if reasons else None


def json_objects(text: str) -> Iterator[dict[str, Any]]:
    """The JSON objects in a text, such as in a code fence or after thoughts; not those inside others."""
    decoder, end = json.JSONDecoder(), 0
    for brace in _OBJECT.finditer(text):
        if brace.start() < end:
            continue
        try:
            value, end = decoder.raw_decode(text, brace.start())
        except RecursionError:
            return
        except ValueError:
            continue
        yield value


def _expected_at(statement: Statement, answer: Answer, prompt: Prompt) -> float | None:
    """The mean of the scores at the position of the parsed one, weighted by their probabilities."""
    value = statement.value
    # The tokens may contain more than the text (reasoning, an end token) and parts of characters, so offsets in the
    # text are not offsets in the tokens: search the tokens for the text from the match on.
    start = "".join(token.text for token in answer.tokens).rfind(answer.text[statement.start :])
    if start < 0:
        return None
    offset = start + value.start - statement.start
    position = 0
    for token in answer.tokens:
        if position <= offset < position + len(token.text):
            if token.text.strip() != answer.text[value.start : value.stop]:
                return None  # the score shares its token with other text, or continues in the next
            weights = []
            for text, logprob in token.top.items():
                number = numeral(text.strip())
                if number is not None and prompt.score.min <= number <= prompt.score.max:
                    weights.append((number, logprob))
            return weighted_mean(weights)
        position += len(token.text)
    return None


def _read_choice(answer: Answer, prompt: Prompt) -> Verdict:
    if not answer.tokens or not answer.tokens[0].top:
        raise AnswerError("no_logprobs", "mode choice needs log-probabilities, but the server returned none")
    top = answer.tokens[0].top
    if not top.keys() & prompt.choices.keys():
        raise AnswerError("unparsable_score", f"no choice among the {len(top)} likeliest next tokens")
    floor = min(top.values())  # upper bound for choices that are not among the likeliest tokens
    by_value: dict[float, list[float]] = {}
    for choice, value in prompt.choices.items():
        by_value.setdefault(value, []).append(top.get(choice, floor))
    # The mean over the choices of a value, not the logarithm of their summed probabilities: the sum would be decided by
    # the one choice that the examples make likely, but rare choices separate pages better (docs/annotation.md).
    weights = [(value, fmean(logprobs)) for value, logprobs in by_value.items()]
    expected = weighted_mean(weights)
    assert expected is not None
    return Verdict(max(weights, key=lambda w: w[1])[0], prompt.calibrated(expected))


def _read_written_choice(answer: Answer, prompt: Prompt) -> Verdict:
    written = (without_reasoning(answer.text) or "").strip(" \n*_`\"'.").casefold()
    for choice, value in prompt.choices.items():
        if written == choice.strip().casefold():
            return Verdict(value, None)
    if answer.cut_off:
        raise AnswerError("cut_off", "the answer reached max_tokens before a choice; raise max_tokens of the prompt")
    if not written:
        raise AnswerError("only_reasoning" if answer.text.strip() else "empty_answer", "the answer has no choice")
    raise AnswerError("unparsable_score", f"{answer.text.strip()[:_SHOWN_CHARS]!r} is not one of the choices")


def weighted_mean(weights: Sequence[tuple[float, float]]) -> float | None:
    """The mean of (value, log-weight) pairs weighted by exp(log-weight); None without pairs."""
    if not weights:
        return None
    top = max(weight for _, weight in weights)  # exp of the difference cannot underflow for all of them
    shares = [math.exp(weight - top) for _, weight in weights]
    return sum(value * share for (value, _), share in zip(weights, shares, strict=True)) / sum(shares)
