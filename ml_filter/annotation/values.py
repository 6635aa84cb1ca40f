"""Values in an answer: the numbers that can be scores, with what belongs to them: units, sums, denominators, doubts."""

from __future__ import annotations

import re
import unicodedata
from typing import ClassVar, NamedTuple

# --- Characters: one for one, so that offsets stay -------------------------------------------------------------------


class _Fold(dict[int, str]):
    """Digits of every script and full-width signs as ASCII; symbols and other spaces as a space."""

    _SIGNS: ClassVar = dict(
        zip("\u2212\u066b\u066a\u060c\u2044\u2215\u00d7\u3002\u2018\u2019\u3010\u3011", "-.%,//*.''()", strict=True)
    )

    def __missing__(self, code: int) -> str:
        char, category = chr(code), unicodedata.category(chr(code))
        if category == "Nd":
            self[code] = str(unicodedata.decimal(char))
        elif 0xFF01 <= code <= 0xFF5E:
            self[code] = chr(code - 0xFEE0)
        elif char in "\n\r\u2028\u2029":
            self[code] = "\n"
        elif category in ("Zs", "Cf", "So", "Cc") or code in (0xFE0F, 0x20E3):
            self[code] = " "
        else:
            self[code] = self._SIGNS.get(char, char)
        return self[code]


FOLD = _Fold()
_TAG = re.compile(r"<(\w{0,30}(?:score|rating))>", re.IGNORECASE)
_DECORATION = re.compile(
    r"</?[a-zA-Z]\w{0,15}>|<(?=-?\d+(?:[.,]\d+)?>)|(?<=\d)>|<\|(?:begin|end)_of_box\|>"
    r"|\\(?:boxed|fbox|text(?:bf)?|math(?:bf|rm)|left|right|[()\[\]])|[*_`\"'$#{}\u201c\u201d]"
)
_BRACKETS = str.maketrans("[]", "()")


def plain_text(text: str) -> str:
    """A text without its decoration: Markdown, LaTeX, tags, quotes."""
    folded = _TAG.sub(lambda tag: f" {tag[1]}:", text.translate(FOLD))
    return _DECORATION.sub(lambda mark: " " * len(mark[0]), folded).translate(_BRACKETS)


# --- Values ----------------------------------------------------------------------------------------------------------

GAP = "[ ]{0,9}"
NUMBER = r"-?\d+(?:[.,]\d+)?"
UNIT = r"(?:(?:points?|pts?|stars?|punkte?n?|puntos?|pontos?|punti|балл\w{0,3})\b|[分点점星])"
RANGE = r"(?:-|\u2013|\u2014|~|\.\.+|\u2026|\bto\b|\bbis\b|\ba\b|à|до|[到至])"
_TERM = rf"\(?{NUMBER}\)?(?:{GAP}{UNIT})?(?:{GAP}\([^()\d\n]{{1,60}}\))?"
_OPERATOR = r"(?:\s{0,9}[+*x]|[ ]-(?=[ ]))"
_EXPRESSION = re.compile(
    rf"\(?{_TERM}(?:{_OPERATOR}{GAP}{_TERM})*(?:(?<=\)){GAP}/{GAP}{NUMBER}(?={GAP}=))?\)?", re.IGNORECASE
)
_EQUALS = re.compile(rf"\s{{0,9}}(?:=+>?|->|[\u2192\u21d2\u2248]){GAP}(?=\(*-?\d)")
OF = rf"(?:/|\b(?:out{GAP}of|of|von|de|sur|su|van|av|z|из)\b|满分)"
_MAXIMUM = re.compile(
    rf"""(?xi) {GAP} (?:{UNIT})? {GAP} (?:
    (?: [(,] {GAP} )? {OF} {GAP} (?: (?:the|a|total|possible|maximum|max)\b {GAP} ){{0,3}} ({NUMBER})
    | \( {GAP} {NUMBER} {GAP} {RANGE} {GAP} ({NUMBER}) [^()\d\n]{{0,20}} \)
    | [^.;\n\d]{{0,30}} \b(?:scale|skala|escala|max(?:imum)?)\b \.? [^.;\n\d]{{0,20}}
      (?: \d+ {GAP} {RANGE} {GAP} )? (\d+)
    | {GAP} \(? {GAP} (?:on\ an?)? {GAP} (\d+) [-\ ] point )"""
)
_DOUBT = re.compile(
    rf"""(?xi) {GAP} %|{GAP}\b(?:percent|prozent|por\ ciento)\b
    | (?! {UNIT} ) [^\W_] | {GAP} [?] | {GAP} [+] (?!\w) | {GAP} [.,:/^] \d | [ ] {GAP} [\d\u00bc-\u00be]
    | {GAP} (?: {UNIT} {GAP} )? (?: {RANGE} | [,;&] | \b(?:or|and|oder|und|ou|y|o|u|e)\b | или | 或 )
      {GAP} (?: (?:or|even|maybe|perhaps|possibly|at|most|a|an)\b {GAP} ){{0,3}} \d"""
)
_PERCENT = re.compile(rf"(?i){GAP}(?:%|\b(?:percent|prozent|por ciento)\b)")


class Value(NamedTuple):
    """A number: where its digits start and end, where what belongs to it ends, and why it cannot be a score, if so."""

    number: float
    start: int
    stop: int
    end: int
    problem: tuple[str, str] | None = None


def to_float(digits: str) -> float:
    """A number with a decimal point or comma."""
    return float(digits.replace(",", "."))


def _sum(expression: str) -> float | None:
    """The value of an expression with plus and minus only."""
    plain = re.sub(r"\([^()\d]*\)|[()\s]|[^\W\d]+", "", expression)
    return sum(map(to_float, re.findall(rf"[+]?({NUMBER})", plain))) if re.fullmatch(r"[-+\d.,]+", plain) else None


def read_value(text: str, start: int, low: float, high: float) -> Value | None:
    """The value that starts at an offset of a plain text; None without one.

    A sum has the number after its `=`. A number in doubt has a problem: a range, another scale, a percentage.
    """
    sides = [side] if (side := _EXPRESSION.match(text, start)) else []
    while sides and (equals := _EQUALS.match(text, sides[-1].end())) and (
        side := _EXPRESSION.match(text, equals.end())
    ):  # fmt: skip
        sides.append(side)
    if not sides:
        return None
    numbers = [list(re.finditer(NUMBER, side[0])) for side in sides]
    index = -1 if len(numbers[-1]) == 1 else 0  # 1 + 2 = 3, or 3 = 1 + 2
    side, digits = sides[index], numbers[index][0]
    begin, stop = side.start() + digits.start(), side.start() + digits.end()
    end = sides[-1].end() if len(sides) > 1 or len(numbers[0]) > 1 else stop + (text[stop : stop + 1] == ")")
    number = to_float(digits[0])

    def value(problem: str | None = None, code: str = "unparsable_score") -> Value:
        return Value(number, begin, stop, end, (code, problem) if problem else None)

    shown = repr(text[start : end + 9].partition("\n")[0].strip())
    if len(numbers[index]) > 1:
        return value(f"{shown} is a range or a sum without its result")
    sums = [total for side in sides if (total := _sum(side[0])) is not None]
    if any(abs(total - number) > 1e-6 for total in sums):
        return value(f"{shown} does not add up")
    if re.fullmatch(r"-?[1-9]\d*,\d{3}", digits[0]):
        return value(f"{shown} may be a decimal or thousands")
    if scale := _MAXIMUM.match(text, end):
        end = scale.end()
        if to_float(next(filter(None, scale.groups()))) != high:
            return value(f"{text[begin:end]!r} is not on the scale from {low:g} to {high:g}", "other_scale")
        end += text[end : end + 1] == ")"
        if re.match(rf"{GAP}(?:/|=+{GAP}\d)", text[end : end + 20]):
            return value(f"{shown} is more than a score")
    elif _PERCENT.match(text, end):
        return value(f"{shown} is a percentage", "other_scale")
    if _DOUBT.match(text, end):
        return value(f"{shown} is not one number")
    return value()
