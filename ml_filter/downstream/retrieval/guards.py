"""Guardrails: injected instructions in what is read, personal data and false citations in what is written."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence

_INJECTION = re.compile(
    r"""(?xi)
    \b(ignore|disregard|forget|override)\b.{0,30}\b(previous|above|prior|earlier|preceding|all|your|these)\b
      .{0,20}\b(instruction|prompt|rule|direction|guideline|command)s?\b
    | \b(ignoriere?|vergiss|missachte)\b.{0,40}\b(anweisung|vorgabe|regel|befehl)(en|e|n)?\b
    | \b(ignora|olvida)\b.{0,40}\b(instrucciones|indicaciones|reglas|órdenes)\b
    | \b(ignore[zs]?|oublie[zs]?)\b.{0,40}\b(instructions|consignes|règles)\b
    | \b(reveal|print|repeat|show|output|leak)\b.{0,30}\b(system|hidden|initial)\s+(prompt|message|instructions?)\b
    | \byou\s+are\s+(now|no\s+longer)\s+(an?\s+)?(ai|assistant|chatbot|language\s+model|dan|unrestricted|jailbroken)\b
    | \b(do\s+not|don't|never)\s+(tell|inform|mention|reveal).{0,20}\b(to\s+)?the\s+user\b
    | ^\s*(system|assistant)\s*:\s*\S
    | \b(new|updated)\s+(system\s+)?(instructions|prompt)\s*:
    | <\|?(im_start|im_end|system|endoftext|eot_id)\|?> | \[/?INST\] | <<SYS>>
    """,
    re.MULTILINE,
)
_EMAIL = re.compile(r"\b[\w.+%-]+@(?:[a-z0-9-]+\.)+[a-z]{2,}\b", re.IGNORECASE)
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b")
_CARD = re.compile(r"(?<![\d-])\d(?:[ -]?\d){12,18}(?![\d-])")
_PHONE = re.compile(
    r"(?<![\w.+])(?<!\d )(?:\+\d{1,3}|00[1-9]\d{0,2}|\(?0\d{1,5}\)?)[ ./-]?\(?\d{1,5}\)?(?:[ ./-]?\d{2,5}){1,4}(?!\w)"
    r"|(?<![\w.+-])(?<!\d )(?:\(\d{3}\) ?|\d{3}[ .-])\d{3}[ .-]\d{4}(?![\w-])"
)
_NUMBERS = r"\d{1,3}(?:\s*[,;]\s*\d{1,3})*"
_CITATION = re.compile(rf"\s?\[({_NUMBERS})\]")
_MAX_TITLE_CHARS = 300
_SOURCES = "\n\nSources:\n\n"
_MIN_PHONE_DIGITS = 9
"""Fewer are more often times of day or years."""


def is_injection(text: str) -> bool:
    """Whether a text has a phrase that is meant for a model, such as "ignore all previous instructions"."""
    return _INJECTION.search(text) is not None


def mask_personal_data(text: str) -> tuple[str, Counter[str]]:
    """The text with e-mail addresses, IBANs, card numbers and phone numbers replaced by their kind, and how many.

    IBANs and cards count only if their check digits are right (ISO 13616 and Luhn).
    """
    counts: Counter[str] = Counter()

    def mask(kind: str, pattern: re.Pattern[str], text: str) -> str:
        def replacement(match: re.Match[str]) -> str:
            if not _CHECKS[kind](match[0]):
                return match[0]
            counts[kind] += 1
            return f"[{kind}]"

        return pattern.sub(replacement, text)

    for kind, pattern in (("email", _EMAIL), ("iban", _IBAN), ("card", _CARD), ("phone", _PHONE)):
        text = mask(kind, pattern, text)
    return text, counts


def _is_iban(text: str) -> bool:
    compact = text.replace(" ", "")
    return int("".join(str(int(c, 36)) for c in compact[4:] + compact[:4])) % 97 == 1


def _is_card(text: str) -> bool:
    digits = [int(c) for c in text if c.isdigit()][::-1]
    doubled = (2 * digit - 9 if digit > 4 else 2 * digit for digit in digits[1::2])
    return any(digits) and (sum(digits[::2]) + sum(doubled)) % 10 == 0


_CHECKS: dict[str, Callable[[str], bool]] = {
    "email": lambda text: True,
    "iban": _is_iban,
    "card": _is_card,
    "phone": lambda text: sum(map(str.isdigit, text)) >= _MIN_PHONE_DIGITS,
}


def check_citations(text: str, sources: int) -> tuple[str, list[int], int]:
    """The text without citations of sources that were not given, the sources cited, and how many citations were
    removed."""
    cited: dict[int, None] = {}
    removed = 0

    def replacement(match: re.Match[str]) -> str:
        nonlocal removed
        numbers = [int(number) for number in re.findall(r"\d+", match[1])]
        valid = [number for number in numbers if 1 <= number <= sources]
        removed += len(numbers) - len(valid)
        cited.update(dict.fromkeys(valid))
        space = match[0][: match[0].index("[")]
        return f"{space}[{', '.join(map(str, valid))}]" if valid else ""

    checked = _CITATION.sub(replacement, text)
    return checked, sorted(cited), removed


def without_brackets(text: str) -> str:
    """A source's text with its own `[1]` as `(1)`, so that they are not taken for citations or for another source."""
    return re.sub(rf"\[({_NUMBERS})\]", r"(\1)", text)


def sources_text(question: str, sources: Sequence[tuple[str, str]]) -> str:
    """A question with its numbered sources, each a title and a text, as an LLM is given them.

    A title, which is a column of the document, becomes one line. `Question.clean` defuses the ends of fences and the
    control tokens in all of it.
    """
    parts = []
    for number, (title, text) in enumerate(sources, 1):
        line = " ".join(title.split())[:_MAX_TITLE_CHARS]
        parts.append(f"[{number}] " + without_brackets(f"{line}\n{text}"))
    return f"Question: {question}{_SOURCES}" + "\n\n".join(parts)


def with_answer(text: str, answer: str) -> str:
    """The text of `sources_text` with an answer between question and sources: the end is cut off if all is too long."""
    question, mark, sources = text.partition(_SOURCES)
    return f"{question}\n\nAnswer: {answer}{mark}{sources}"
