"""The grammar of an answer: which number in the words of a model is its score.

    answer    = (statement | prose)* | value
    statement = [qualifier] label [qualifier] [scale] link value | \\boxed{value} | subject "give ... a score of" value
    value     = number [unit] [denominator] | sum "=" number

A statement begins a line or a clause. Its qualifier is general (`Final`, `Page`) or names the prompt's criterion:
`Clarity score: 5` is a score of something else. The statement of the highest rank counts: a total, then a labelled
score, then a sentence. Statements that contradict each other, and values that leave a doubt, are an AnswerError and
never a score. docs/prompts.md has the rules, tests/annotation/test_grammar.py the examples.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

from ml_filter.annotation.reasoning import without_reasoning
from ml_filter.annotation.values import FOLD, GAP, NUMBER, OF, RANGE, UNIT, Value, plain_text, read_value, to_float

GRAMMAR = "answer grammar 1"
"""Stands for this grammar in a prompt without a pattern, so that the prompt's digest covers it."""
_TOTAL, _LABELLED, _SPOKEN = 3, 2, 1
_SHOWN_CHARS = 100


class AnswerError(Exception):
    """An answer that cannot be used. `code` is the error code of the failed annotation."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code


# --- Statements ------------------------------------------------------------------------------------------------------

_TOTALS = (
    r"(?:final[e]?|overall|total[e]?|grand|globale?|gesamt\w*|endgültig\w*|итог\w*|"
    r"общ\w*|综合|最终|最終|総合|최종)"
)
_GENERAL = frozenset(
    re.findall(
        r"\w+",
        "a also an and answer article assessment assigned conclusion content document evaluation given hence i its "
        "judgement my of output page points quality result s so text the therefore this thus verdict web webpage "
        "website das der die mein meine el la le mi il",
    )
)
_LABEL = re.compile(
    r"""(?xi)
    (?<![^\W_]) (?: (?P<sum> total (?:\ points)? | gesamtpunktzahl | summe | suma
        | итого )
      | score | rating | punktzahl | (?:gesamt)?bewertung | puntuaci[oó]n | puntaje | calificaci[oó]n
      | pontua[cç][aã]o | punteggio | оценка | балл
      | оцена | ocena | skor | الدرجة
      | التقييم | स\u094dक\u094bर ) (?![^\W_])
    | 评分 | 評分 | 得分 | 分数 | スコア | 点数 | 점수
    | (?P<all> 总分 | 總分 | 合计 | 총점 )"""
)
_LINK = re.compile(
    rf"""(?xi) {GAP} (?: (?P<more>{_TOTALS}|points)\b {GAP} )?
    (?: (?:for|of)\ (?:this|the)\ (?:web\ ?)?(?:page|document|text|site|article|content) {GAP} )?
    (?: (?P<scale> \( [^()\n]{{0,40}} \) | \d+ {GAP} {RANGE} {GAP} \d+ (?={GAP}:) ) {GAP} )?
    (?P<link> (?P<weak> (?:is|ist|es|est|è)\b:? | [是为為は] | (?=-?\d) )
      | [:=\u2192] | -{{1,2}}> | => | [-\u2013\u2014](?=\s) | \|(?={GAP}\d) | \n )
    (?P<space> \s{{0,9}} ) (?=\(?-?\d)"""
)
_NO_SCORE = re.compile(rf"(?i){GAP}[:=]{GAP}(?:n/a|none|null|unknown|undefined|not (?:applicable|given)|cannot)\b")
_BOX = re.compile(r"(?:\\(?:boxed|fbox)[ ]?\{|<\|begin_of_box\|>)")
_BREAK = re.compile(r"[.!?;,|\n(]")
_UNDECIDED = re.compile(
    r"(?i)\b(?:if|unless|had|not|cannot|never|no|\w+n t|might|could|maybe|perhaps|possibly|instead|rather than|between|"
    r"almost|nearly|first|initial\w*|tentative\w*|guess\w*|example|e\.g|such as|format|previous\w*|earlier|draft|why|"
    r"wenn|nicht|vielleicht|könnte|si|quizás|если|не)\b"
)
_REVISED = re.compile(
    r"(?i)\b(?:on (?:reflection|second thoughts?)|actually|correct(?:ion|ed|ing)|revis\w+|reconsider\w*|wait|final\w*|"
    r"scratch that|re-?evaluat\w+|adjust\w*|korrektur)\b"
)
_GIVES = re.compile(
    rf"""(?xi) \b (?:I|we|it|(?:this|the)\ (?:web\ ?)?(?:page|document|text|site|article|extract|content))(?:\ d)?\b
    {GAP} (?:\w+\ ){{0,3}}?
    (?: (?:give|assign|award|deserve|earn|merit|receive|get|warrant|rate)(?:s|d|ed)?\b [^.!?;:\n\d]{{0,60}}?
        \b(?:score|rating) (?:\ of|:)? [ ]{GAP}
      | (?:give|award|rate|score)(?:s|d)?\b [^.!?;:\n\d]{{0,40}}? [ ]
        (?= {NUMBER} {GAP} (?: {OF} {GAP} \d+ {GAP} {UNIT}? )? {GAP} (?: [.,;!\n] | \Z ) ) )
    (?=\d)"""
)
_REST_OF_LINE = re.compile(r"[ .!)|]*(?:\n|\Z)")
_ONLY_IF = re.compile(rf"(?i){GAP}(?:only |but only )?(?:if|unless|when|wenn|falls)\b")
_CLOSED = re.compile(r"""[ *_`"')\]$]*(?:\n|[}>]|</|[.!;][ ]+\S)""")
_CLOSED_IN_JSON = re.compile(r'\s*"?\s*[,}\]]')
_TOKEN = re.compile(
    r"""(?xs) "(?P<string>(?:[^"\\]|\\.)*+)"? (?P<is_key>\s*:)? | '(?P<key>[\w\ ]{1,40})'\s*:
    | (?P<bracket>[{}\[\]])"""
)


class Statement(NamedTuple):
    """A score that an answer states: its rank, the start of its clause, its first number, and its value."""

    rank: int
    start: int
    first: int
    value: Value


def _none(start: int, end: int) -> Value:
    return Value(0.0, start, end, end, ("unparsable_score", "the answer says that there is no score"))


@dataclass(frozen=True)
class Grammar:
    """Reads the answers to a prompt.

    Attributes:
        low, high: the range of the score.
        criterion, prompt: the criterion's name and the prompt's text, whose words may qualify a label.
        patterns: the prompt's own patterns, in order of preference, with the score as their group.
        in_json: answers are JSON objects.
    """

    low: float
    high: float
    criterion: str = ""
    prompt: str = ""
    patterns: Sequence[re.Pattern[str]] = ()
    in_json: bool = False

    def read(self, answer: str, *, cut_off: bool = False) -> Statement:
        """The statement of an answer that counts; its value is in the range.

        Args:
            cut_off: the answer has no end, so that its last words may not say what they seem to say.

        Raises:
            AnswerError: `empty_answer`, `only_reasoning`, `cut_off`, `unparsable_score`, `ambiguous_score`,
                `other_scale`, `out_of_range`.
        """
        text = without_reasoning(answer)
        statements = list(self.statements(text)) if text and text.strip() else []
        if text is None or (cut_off and not (statements and self._is_settled(answer, text, statements))):
            where = "inside its reasoning" if text is None else "before it stated a whole score"
            if cut_off:
                raise AnswerError("cut_off", f"the answer reached max_tokens {where}; raise max_tokens of the prompt")
            raise AnswerError("only_reasoning", f"the answer ends {where}")
        if not text.strip():
            code, detail = ("only_reasoning", "only reasons") if answer.strip() else ("empty_answer", "is empty")
            raise AnswerError(code, f"the answer {detail}")
        if not statements:
            raise AnswerError(
                "unparsable_score", f"the answer states no score; it ends with {answer.strip()[-_SHOWN_CHARS:]!r}"
            )
        statement = _that_counts(text, statements)
        value = statement.value
        if value.problem:
            raise AnswerError(*value.problem)
        if not self.low <= value.number <= self.high:
            raise AnswerError("out_of_range", f"{value.number:g} is outside {self.low:g} to {self.high:g}")
        return statement

    def statements(self, text: str) -> Iterator[Statement]:
        """The statements of a text without reasoning, in its order."""
        plain = plain_text(text)
        if self.in_json or text.lstrip("`json \n").startswith("{"):
            members = list(self._members(text, plain))
            if members or self.in_json:
                yield from members
                return
        found = sorted([*self._labelled(plain), *self._boxed(text, plain)], key=lambda statement: statement.first)
        if not found:
            found = list(self._spoken(plain)) or list(self._bare(plain))
        if self.patterns:
            found = self._matched(text, plain, found)
        yield from found

    def form(self, before: str) -> str | None:
        """The end of a text, from the label on, after which a number is a score: what a prompt shows of its answer."""
        for start in [*(label.start() for label in _LABEL.finditer(before)), 0]:
            for statement in self.statements(f"{before[start:]}{self.high:g}"):
                if statement.first == len(before) - start:
                    return before[start + statement.start :]
        return None

    def _value(self, plain: str, start: int) -> Value | None:
        return read_value(plain, start, self.low, self.high)

    def _labelled(self, plain: str) -> Iterator[Statement]:
        end = 0
        for label in _LABEL.finditer(plain):
            link = _LINK.match(plain, label.end())
            none = None if link else _NO_SCORE.match(plain, label.end())
            if not (link or none):
                continue
            # The clause starts after the last mark of punctuation, or after the value of the statement before.
            window = max(0, label.start() - 120)
            start = max((mark.end() for mark in _BREAK.finditer(plain, window, label.start())), default=window)
            start = max(start, end)
            qualifier = re.sub(r"\A\s*\d{1,2}\)", "", plain[start : label.start()])
            if not self._is_general(qualifier, label[0]) or _is_undecided(plain, label.start()):
                continue
            if none:
                yield Statement(_LABELLED, _skip_space(plain, start), label.end(), _none(none.start(), none.end()))
                continue
            assert link is not None
            value = self._value(plain, link.end())
            end = value.end if value else end
            begins_line = re.fullmatch(r"|.*[\n|] *", plain[max(0, start - 20) : start], re.DOTALL) is not None
            is_alone = value is not None and _REST_OF_LINE.match(plain, value.end) is not None
            if value is None or _ONLY_IF.match(plain, value.end) or self._is_scale(plain, value):
                continue
            is_total = bool(label["sum"] or label["all"])
            # Without a sign between, or with a new line, label and value must be all that their lines hold.
            if "\n" in link["link"] + link["space"] or link["weak"] == "":
                if not (begins_line and is_alone):
                    continue
            elif is_total and (link["weak"] or not begins_line):
                continue
            if link["scale"] and not (value := self._on_scale(link["scale"], value, label[0])):
                continue
            if is_total or any(re.fullmatch(_TOTALS, word) for word in _words(f"{qualifier} {link['more'] or ''}")):
                rank = _TOTAL
            else:
                rank = _SPOKEN if link["weak"] else _LABELLED
            yield Statement(rank, _skip_space(plain, start), link.end(), value)

    def _is_general(self, qualifier: str, label: str) -> bool:
        """Whether words before a label leave it the score of the prompt's criterion."""
        words = _words(qualifier)
        if re.search(r"\d", qualifier):
            return False
        own, asked = self._own_words
        if all(word in _GENERAL or word in own or re.fullmatch(_TOTALS, word) for word in words):
            return True
        return f" {' '.join([*words, label.casefold()])} " in asked

    @cached_property
    def _own_words(self) -> tuple[frozenset[str], str]:
        return frozenset(_words(self.criterion)), f" {' '.join(_words(self.prompt))} "

    def _on_scale(self, scale: str, value: Value, label: str) -> Value | None:
        """The value after a label such as `Score (0-5)`; None if the brackets name another criterion."""
        maximum = re.search(rf"(?i)(?:{RANGE}|{OF}|\bmax\w*:?|\bup to){GAP}(\d+(?:[.,]\d+)?)", scale)
        if maximum and to_float(maximum[1]) != self.high:
            return value._replace(problem=("other_scale", f"{scale.strip()!r} is not {self.low:g} to {self.high:g}"))
        return value if maximum or self._is_general(scale, label) else None

    def _is_scale(self, plain: str, value: Value) -> bool:
        """Whether a value is the prompt's range, as in `Score: 0-5`."""
        scale = rf"{self.low:g}{GAP}{RANGE}{GAP}{self.high:g}(?!\d|[.,]\d)"
        return re.match(scale, plain[value.start : value.start + 60]) is not None

    def _boxed(self, text: str, plain: str) -> Iterator[Statement]:
        for box in _BOX.finditer(text):
            start = _skip_space(plain, box.end())
            if value := self._value(plain, start):
                yield Statement(_LABELLED, box.start(), start, value)

    def _spoken(self, plain: str) -> Iterator[Statement]:
        for gives in _GIVES.finditer(plain):
            value = self._value(plain, gives.end())
            if value and not _is_undecided(plain, gives.end()) and not _ONLY_IF.match(plain, value.end):
                yield Statement(_SPOKEN, gives.start(), gives.end(), value)

    def _bare(self, plain: str) -> Iterator[Statement]:
        start = len(plain) - len(plain.lstrip(" \n("))
        value = self._value(plain, start)
        if value and not plain[value.end :].strip(" \n.!)"):
            yield Statement(_LABELLED, start, start, value)

    def _members(self, text: str, plain: str) -> Iterator[Statement]:
        """The members of JSON objects, also of broken ones, whose key is a label."""
        key, is_general, outer = "", True, list[bool]()
        for token in _TOKEN.finditer(text, max(text.find("{"), 0)):
            if token["bracket"] in ("{", "["):
                outer.append(is_general)
                is_general = is_general and self._is_general(key, "")
            elif token["bracket"]:
                is_general = outer.pop() if outer else True
            key = ""
            if not (token["is_key"] or token["key"]):
                continue
            key = _key_words((token["string"] or token["key"] or "")[:80])
            label = _LABEL.search(key)
            if not label or label.end() < len(key):
                continue
            start = _skip_space(plain, token.end())
            value = self._value(plain, start)
            if value is None and plain.startswith("null", start):
                value = _none(start, start + 4)
            if value is None:
                continue
            is_maximum = re.search(r"(?i)\bmax", key) is not None
            if is_maximum and value.number != self.high:
                problem = ("other_scale", f"{text[token.start() : value.stop]} is not {self.high:g}")
                yield Statement(_TOTAL, token.start(), start, value._replace(problem=problem))
            elif is_general and self._is_general(key[: label.start()], label[0]):
                yield Statement(_LABELLED, token.start(), start, value)

    def _matched(self, text: str, plain: str, found: Sequence[Statement]) -> list[Statement]:
        """The statements that the prompt's own pattern matches; without any, the last match."""
        matches = ([match for match in pattern.finditer(text) if match[1]] for pattern in self.patterns)
        matched = next(filter(None, matches), [])
        starts = {match.start(1) for match in matched}
        if chosen := [statement for statement in found if statement.first in starts]:
            return chosen
        end, last = 0, list[Statement]()
        for match in matched:
            if match.start(1) < end:
                continue  # the 5 of 4/5
            value = self._value(plain, match.start(1)) or _numeral_of(match)
            end = value.end
            last = [Statement(_LABELLED, match.start(), match.start(1), value)]
        return last

    def _is_settled(self, answer: str, text: str, statements: Sequence[Statement]) -> bool:
        """Whether more text after the end of an answer would not change its statements.

        Without a mark that ends its reasoning, all that comes before a statement may be reasoning."""
        before = text[: text.find("{") if self.in_json else statements[0].start]
        if text == answer and set(_words(before)) - {"json", "boxed"}:
            return False
        closed = _CLOSED_IN_JSON if self.in_json else _CLOSED
        folded = text.translate(FOLD)
        return all(closed.match(folded, statement.value.end) for statement in statements) and not _REVISED.search(
            folded, statements[-1].value.end
        )


def _that_counts(text: str, statements: Sequence[Statement]) -> Statement:
    """The last statement of the highest rank, if no other contradicts it.

    Earlier ones of lower rank do not, nor do those that the answer takes back ("On reflection, ...").
    """
    rank = max(statement.rank for statement in statements)
    best = [statement for statement in statements if statement.rank == rank][-1]
    revised = max((word.start() for word in _REVISED.finditer(text, 0, best.first)), default=-1)
    for other in statements:
        is_same = other.value.number == best.value.number and other.value.problem == best.value.problem
        is_replaced = other.first < best.first and (other.rank < rank or other.value.end <= revised)
        if not (is_same or is_replaced):
            first, second = (text[s.value.start : s.value.stop] for s in sorted((other, best), key=lambda s: s.first))
            raise AnswerError("ambiguous_score", f"the answer states more than one score: {first} and {second}")
    return best


def _numeral_of(match: re.Match[str]) -> Value:
    """What a pattern matched, as a numeral."""
    number = numeral(match[1])
    problem = ("unparsable_score", f"{match[1]!r} is not a number") if number is None else None
    return Value(number or 0.0, match.start(1), match.end(1), match.end(1), problem)


def numeral(text: str) -> float | None:
    """Digits of any script, or a single numeral such as 五 (5)."""
    return float(text) if text.isdecimal() else unicodedata.numeric(text, None) if len(text) == 1 else None


def _is_undecided(plain: str, end: int) -> bool:
    """Whether the sentence up to an offset is a condition, a denial or a first guess."""
    window = plain[max(0, end - 200) : end]
    return _UNDECIDED.search(re.split(r"[.!?\n](?!\d)", window)[-1]) is not None


@lru_cache(maxsize=1024)
def _key_words(key: str) -> str:
    """A key such as `finalScore` or `final_score` as words."""
    return plain_text(re.sub(r"(?<=[a-z])(?=[A-Z])", " ", key)).strip()


def _skip_space(text: str, start: int) -> int:
    return start + len(text[start : start + 99]) - len(text[start : start + 99].lstrip())


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]+", text.casefold())
