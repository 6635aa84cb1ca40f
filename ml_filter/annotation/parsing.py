"""From a model's answer to a score: the parsed answer and, from log-probabilities, the expected score."""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from ml_filter.annotation.client import storable
from ml_filter.annotation.prompts import Prompt

_PLAIN = str.maketrans({",": ".", "\u066b": ".", "\u2212": "-"})
"""The Arabic decimal separator and the minus sign as `float` reads them."""
_SHOWN_CHARS = 100


@dataclass(frozen=True)
class Token:
    """A generated token and the log-probabilities of the likeliest tokens in its place."""

    text: str
    top: Mapping[str, float]


@dataclass(frozen=True)
class Answer:
    """What the model said. `tokens` is empty and the counts are None where the server does not give them.

    `cut_off`: it reached the most tokens it may write.
    """

    text: str
    tokens: Sequence[Token] = ()
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cut_off: bool = False
    attempts: int = 1
    latency_s: float = 0.0


@dataclass(frozen=True)
class Verdict:
    """A score in the prompt's range, the expected score where it is known, and the words before the score."""

    score: float
    expected_score: float | None
    reason: str | None = None


class AnswerError(Exception):
    """An answer that gives no score. `code` is the error code of the failed annotation."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code


def read_verdict(answer: Answer, prompt: Prompt) -> Verdict:
    """Read an answer the way its prompt says.

    Raises:
        AnswerError: `empty_answer`, `unparsable_score`, `out_of_range` or `no_logprobs`.
    """
    if prompt.mode == "choice":
        return _read_choice(answer, prompt) if prompt.top_logprobs else _read_written_choice(answer, prompt)
    return _read_generated(answer, prompt)


def _read_generated(answer: Answer, prompt: Prompt) -> Verdict:
    if not answer.text.strip():
        raise AnswerError("empty_answer", "the model wrote nothing")
    matches = prompt.scores_in(answer.text)
    if not matches:
        end = answer.text.strip()[-_SHOWN_CHARS:]
        raise AnswerError(
            "unparsable_score", f"the answer holds no score that {prompt.name} finds; it ends with {end!r}"
        )
    match = matches[-1]  # models restate the scale before they decide
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
    """A number in any script's digits, with a point or a comma, or a single numeral such as \u4e94 (5)."""
    try:
        return float(text.translate(_PLAIN))
    except ValueError:
        return unicodedata.numeric(text, None) if len(text) == 1 else None


def _json_reason(text: str, score_at: int) -> str | None:
    # models write a fence, or thoughts with braces of their own, around the object
    for start in {text.find("{"), text.rfind("{", 0, score_at)}:
        try:
            reason = json.JSONDecoder().raw_decode(text, max(start, 0))[0].get("reason")
        except (ValueError, AttributeError, RecursionError):
            continue
        if isinstance(reason, str):
            return storable(reason)
    return None


def _expected_at(match: re.Match[str], answer: Answer, prompt: Prompt) -> float | None:
    """The mean of the scores that could stand where the parsed one starts, weighted by their probabilities."""
    # Tokens may hold more than the text (a reasoning part, an end token) and halves of characters; so the place is
    # looked for among the tokens, by the text from the match on.
    found = "".join(token.text for token in answer.tokens).rfind(answer.text[match.start() :])
    if found < 0:
        return None
    offset = found + match.start(1) - match.start()
    position = 0
    for token in answer.tokens:
        if position <= offset < position + len(token.text):
            if token.text.strip() != match[1]:
                return None  # the score shares its token with other text, or goes on in the next
            values: dict[float, list[float]] = {}
            for text, logprob in token.top.items():
                value = _number(text.strip()) if re.fullmatch(r"\s*(\d+|\w)\s*", text) else None
                if value is not None and prompt.score.min <= value <= prompt.score.max:
                    values.setdefault(value, []).append(logprob)
            return weighted_mean([(value, logsumexp(logprobs)) for value, logprobs in values.items()])
        position += len(token.text)
    return None


def _read_choice(answer: Answer, prompt: Prompt) -> Verdict:
    if not answer.tokens or not answer.tokens[0].top:
        raise AnswerError("no_logprobs", "mode choice needs log-probabilities, and the server gave none")
    top = answer.tokens[0].top
    if not top.keys() & prompt.choices.keys():
        raise AnswerError("unparsable_score", f"no choice among the {len(top)} likeliest next tokens")
    floor = min(top.values())  # a choice that is not listed is at most as likely as the last that is
    by_value: dict[float, list[float]] = {}
    for choice, value in prompt.choices.items():
        by_value.setdefault(value, []).append(top.get(choice, floor))
    # The mean over a value's labels, not the logarithm of their sum, which the one label that the examples made most
    # likely would decide alone; rare labels tell pages apart (figures in docs/annotation.md).
    weights = [(value, fmean(logprobs)) for value, logprobs in by_value.items()]
    expected = weighted_mean(weights)
    assert expected is not None
    return Verdict(max(weights, key=lambda w: w[1])[0], prompt.calibrated(expected))


def _read_written_choice(answer: Answer, prompt: Prompt) -> Verdict:
    written = answer.text.strip().casefold()
    if not written:
        raise AnswerError("empty_answer", "the model wrote nothing")
    for choice, value in prompt.choices.items():
        if written == choice.strip().casefold():
            return Verdict(value, None)
    raise AnswerError("unparsable_score", f"{answer.text.strip()[:100]!r} is none of the choices")


def logsumexp(values: Sequence[float]) -> float:
    """log(sum(exp(v))), safe for large negative values."""
    top = max(values)
    return top + math.log(sum(math.exp(value - top) for value in values))


def weighted_mean(weights: Sequence[tuple[float, float]]) -> float | None:
    """The mean of values weighted by exp(log-weight), normalised; None without values."""
    if not weights:
        return None
    total = logsumexp([weight for _, weight in weights])
    return sum(value * math.exp(weight - total) for value, weight in weights)
