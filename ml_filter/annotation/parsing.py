"""From an answer to a score and, by log-probabilities, to an expected score."""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

from ml_filter.annotation.prompts import Prompt
from ml_filter.annotation.responses import Answer, storable

_PLAIN = str.maketrans({",": ".", "\u066b": ".", "\u2212": "-"})
"""Decimal comma, Arabic decimal separator and minus sign in the form that `float` accepts."""
_SHOWN_CHARS = 100


class Verdict(NamedTuple):
    """A score in the prompt's range, the expected score if it is known, and the reason given for the score."""

    score: float
    expected_score: float | None
    reason: str | None = None


class AnswerError(Exception):
    """An answer that cannot be used. `code` is the error code of the failed annotation."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code


def read_verdict(answer: Answer, prompt: Prompt) -> Verdict:
    """Read the score from an answer, by the mode of the prompt.

    Raises:
        AnswerError: `empty_answer`, `unparsable_score`, `out_of_range` or `no_logprobs`.
    """
    if prompt.mode == "choice":
        return _read_choice(answer, prompt) if prompt.top_logprobs else _read_written_choice(answer, prompt)
    return _read_generated(answer, prompt)


def _read_generated(answer: Answer, prompt: Prompt) -> Verdict:
    if not answer.text.strip():
        raise AnswerError("empty_answer", "the answer is empty")
    matches = prompt.scores_in(answer.text)
    if not matches:
        end = answer.text.strip()[-_SHOWN_CHARS:]
        raise AnswerError(
            "unparsable_score",
            f"no score in the answer matches the pattern of {prompt.name}; the answer ends with {end!r}",
        )
    match = matches[-1]  # the last match: models restate the scale before they decide
    score = _number(match[1])
    if score is None:
        raise AnswerError("unparsable_score", f"{match[1]!r} is not a number")
    if not prompt.score.min <= score <= prompt.score.max:
        raise AnswerError("out_of_range", f"{score:g} is outside {prompt.score.min:g} to {prompt.score.max:g}")
    expected = _expected_at(match, answer, prompt)
    before = answer.text[: match.start()]
    reason = _json_reason(answer.text, match.start()) if prompt.mode == "json" else before.strip() or None
    return Verdict(score, None if expected is None else prompt.calibrated(expected), reason)


def _number(text: str) -> float | None:
    """A number in the digits of any script, with point or comma, or a single numeral such as \u4e94 (5)."""
    try:
        return float(text.translate(_PLAIN))
    except ValueError:
        return unicodedata.numeric(text, None) if len(text) == 1 else None


def _json_reason(text: str, score_at: int) -> str | None:
    # The object may stand inside a code fence, or after thoughts that contain braces.
    for start in {text.find("{"), text.rfind("{", 0, score_at)}:
        try:
            reason = json.JSONDecoder().raw_decode(text, max(start, 0))[0].get("reason")
        except (ValueError, AttributeError, RecursionError):
            continue
        if isinstance(reason, str):
            return storable(reason)
    return None


def _expected_at(match: re.Match[str], answer: Answer, prompt: Prompt) -> float | None:
    """The mean of the scores at the position of the parsed one, weighted by their probabilities."""
    # The tokens may contain more than the text (reasoning, an end token) and parts of characters, so offsets in the
    # text are not offsets in the tokens: search the tokens for the text from the match on.
    start = "".join(token.text for token in answer.tokens).rfind(answer.text[match.start() :])
    if start < 0:
        return None
    offset = start + match.start(1) - match.start()
    position = 0
    for token in answer.tokens:
        if position <= offset < position + len(token.text):
            if token.text.strip() != match[1]:
                return None  # the score shares its token with other text, or continues in the next
            weights = []
            for text, logprob in token.top.items():
                value = _number(text.strip()) if re.fullmatch(r"\s*(\d+|\w)\s*", text) else None
                if value is not None and prompt.score.min <= value <= prompt.score.max:
                    weights.append((value, logprob))
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
    written = answer.text.strip().casefold()
    if not written:
        raise AnswerError("empty_answer", "the answer is empty")
    for choice, value in prompt.choices.items():
        if written == choice.strip().casefold():
            return Verdict(value, None)
    raise AnswerError("unparsable_score", f"{answer.text.strip()[:_SHOWN_CHARS]!r} is not one of the choices")


def weighted_mean(weights: Sequence[tuple[float, float]]) -> float | None:
    """The mean of (value, log-weight) pairs weighted by exp(log-weight); None without pairs."""
    if not weights:
        return None
    top = max(weight for _, weight in weights)  # exp of the difference cannot underflow for all of them
    shares = [math.exp(weight - top) for _, weight in weights]
    return sum(value * share for (value, _), share in zip(weights, shares, strict=True)) / sum(shares)
