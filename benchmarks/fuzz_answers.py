# ruff: noqa: RUF001 (words of many languages)
"""Does the grammar of answers ever crash, hang, or read a score that nobody gave?

Generates answers of which it knows the score, or that there is none: statements, sums and denominators in many styles,
among prose, reasoning and scores of other things. Each is read whole, cut at a random place (which must not change its
score, only lose it), and after random edits (which must never give a score out of range, or one that is not written in
the answer). Prints what it counted, and every answer that broke a law.

    python benchmarks/fuzz_answers.py --inputs 200000
"""

from __future__ import annotations

import argparse
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Sequence

from ml_filter.annotation.grammar import AnswerError, Grammar

RANGES = ((0, 5), (1, 5), (0, 3), (1, 10), (0, 10))
PROSE = (
    "The page explains cells in 3 parts.",
    "A score 5 page would explain more.",
    "It is far from a score of 1.",
    "Why no score of 0? It teaches.",
    "2 + 2 = 4 is one of its 12 examples.",
    "It was written in 2019, and 4/10 of it is advertising.",
    "I would give it a score of 5 if it had exercises.",
    "An initial guess is a score of 2, but it has gaps.",
    "Readability score: 2",
    "Maximum score: 9",
    "| Clarity | 4 |",
    "Clarity: 4",
    "1. It is clear.",
    "- Relevant: +1",
    "Die Seite ist gut.",
    "这个网页很好。",
    "Страница полезна.",
    "",
)
REASONING = (
    ("<think>", "</think>"),
    ("<think>\n", "\n</think>\n\n"),
    ("", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<reasoning>", "</reasoning>\n"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
    ("analysisWe judge. ", "assistantfinal"),
    ("Here is my thought process: ", "Here is my response: "),
)
STATEMENTS = (
    "Score: {}", "score = {}", "SCORE : {}", "**Score:** {}", "**Score**: **{}**", "**Score: {}**", "Score - {}",
    "Score：{}", "Score -> {}", "| Score | {} |", "## Score\n{}", "Score:\n\n**{}**", "<score>{}</score>",
    "\\boxed{{{}}}",
    "Score: $\\boxed{{{}}}$", "Score: `{}`", "Score: ({})", "Final score: {}", "**Final Score: {}**",
    "Overall rating: {}",
    "Educational score: {}", "The score is {}.", "My final score is **{}**.", "I give this page a score of {}.",
    "Punktzahl: {}", "Gesamtpunktzahl: {}", "Puntuación: {}", "Оценка: {}", "评分：{}", "最终得分：{}",
    "점수: {}", "الدرجة: {}",
    "Score: {} (clarity score: 5)", "Score: {}, which is fair.", "Score: {} because it has examples", "- Score: {}",
    "Conclusion: Score: {}", "Score: \\textbf{{{}}}",
)  # fmt: skip
BROKEN = (
    "Score: {}-{}", "Score: {} to {}", "Score: {} or {}", "Score: {} or maybe {}", "Score: between {} and {}",
    "Score: {} + {}", "Score: {}, {}", "Score: {}/{}7", "Score: {} out of 1{}", "Score (0-9{1}): {0}", "Score: {}%",
    "Score: {}+", "Score: {}?", "Score: N/A", "Score: none", "Score: high", "Clarity score: {}",
    "Score for clarity: {}",
    "I would not give it a score of {}.", "A first guess would be Score: {}, but it is thin.", "Score: <{} to {}>",
    "Score: {}\nScore: {}", "Score: {} → {}", "Score:\n1. It is clear.\n2. It is short.", "Score: {}rd", "Score: {}e{}",
    '{{"clarity": {{"score": {}}}}}', "If it were complete, Score: {}.", "Score: >{}", "Score: {} = {}",
)  # fmt: skip
ZEROS = (0x30, 0x30, 0x30, 0x30, 0x660, 0x6F0, 0x966, 0xFF10)
PIECES = (
    *"0123456789.,/-+=:()[]{}<>|*_\"'\\ \n?%",
    "score",
    "Score: ",
    "<think>",
    "</think>",
    "total",
    "of",
    "or",
    "if",
    "五",
)
WORST = (
    *(
        "score ",
        "Score: ",
        "* ",
        "(",
        "score (",
        "0-",
        "\\boxed{",
        " ",
        "<think>",
        "</think>",
        '{"score":',
        "1 + ",
        "9",
    ),
    *("=", '"', "a", "I give ", "score 1 ", "Score: 1\n", "the score is ", "[", '{"a":', "Score: 1 + "),
)


class Fuzz:
    """Generates answers and counts what became of them."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)  # noqa: S311
        self.counts: Counter[str] = Counter()
        self.broken: list[str] = []
        self.slowest = 0.0

    def check(self) -> None:
        """Generate one answer and check the laws on it, whole, cut and edited."""
        low, high = self.random.choice(RANGES)
        grammar = Grammar(low, high, "educational_value", f"End with: Score: <number from {low} to {high}>")
        has_score = self.random.random() < 0.6
        answer, score = self._with_score(low, high) if has_score else (self._without(low, high), None)
        read = self.read(grammar, answer)
        self._expect(read == score, "whole", answer, read, score)
        cut = answer[: self.random.randrange(len(answer) + 1)]
        read_cut = self.read(grammar, cut, cut_off=True)
        self._expect(read_cut is None or read_cut == score or not has_score, "cut", cut, read_cut, score)
        edited = self._edited(answer)
        read = self.read(grammar, edited, cut_off=self.random.random() < 0.3)
        is_written = read is None or read in _numbers(edited)
        self._expect(read is None or (low <= read <= high and is_written), "edited", edited, read, None)

    def read(self, grammar: Grammar, answer: str, *, cut_off: bool = False) -> float | None:
        """The score of an answer, or None; counts the outcome."""
        start = time.perf_counter()
        try:
            score: float | None = grammar.read(answer, cut_off=cut_off).value.number
            self.counts["scored"] += 1
        except AnswerError as error:
            score = None
            self.counts[error.code] += 1
        self.slowest = max(self.slowest, time.perf_counter() - start)
        return score

    def _expect(self, holds: bool, law: str, answer: str, read: float | None, score: float | None) -> None:
        self.counts[f"checked {law}"] += 1
        if not holds:
            self.counts[f"broken {law}"] += 1
            self.broken.append(f"{law}: read {read}, right is {score}: {answer!r}")

    def _with_score(self, low: int, high: int) -> tuple[str, float]:
        whole = self.random.randint(low, high)
        half = whole < high and self.random.random() < 0.2
        written = str(whole) + self.random.choice((".5", ",5")) * half
        if not half:
            written = self.random.choice(
                (written, written, f"{whole}/{high}", f"{whole} out of {high}", self._sum(whole))
            )
        zero = self.random.choice(ZEROS)
        written = re.sub(r"\d", lambda digit: chr(zero + int(digit[0])), written)
        score = whole + 0.5 * half
        if self.random.random() < 0.15:
            number = self.random.choice((f"{score:g}", f'"{score:g}"', f'"{score:g}/{high}"'))
            return self._reasoned(f'{{"reason": "It is a \\"score\\": 1 page.", "score": {number}}}'), score
        statement = self.random.choice(STATEMENTS).format(written)
        return self._reasoned("\n".join([*self._prose(), statement, *self._prose()])), score

    def _sum(self, total: int) -> str:
        first = self.random.randint(0, total)
        return f"{first} + {total - first} = {total}"

    def _without(self, low: int, high: int) -> str:
        first = self.random.randint(low, high - 1)
        statement = self.random.choice(BROKEN).format(first, self.random.randint(first + 1, high))
        answer = "\n".join([*self._prose(), statement, *self._prose()])
        if self.random.random() < 0.3:
            opening = self.random.choice([opening for opening, _ in REASONING if opening])
            return f"{opening}{'' if self.random.random() < 0.5 else answer}\nScore: {first}"
        return self._reasoned(answer)

    def _prose(self) -> list[str]:
        return self.random.choices(PROSE, k=self.random.randrange(4))

    def _reasoned(self, answer: str) -> str:
        if self.random.random() < 0.6:
            return answer
        opening, closing = self.random.choice(REASONING)
        thoughts = f"A page on cells. {' '.join(self._prose())}\nScore: {self.random.randint(0, 9)}"
        return f"{opening}{thoughts}\n{closing}\n{answer}"

    def _edited(self, answer: str) -> str:
        for _ in range(self.random.randrange(1, 6)):
            start = self.random.randrange(len(answer) + 1)
            end = min(len(answer), start + self.random.randrange(4))
            new = self.random.choice((*PIECES, chr(self.random.randrange(0x3000)), answer[end : end + 20]))
            answer = answer[:start] + new + answer[end:]
        return answer


def _numbers(text: str) -> set[float]:
    """The numbers in a text, in the digits of any script."""
    digits = "".join(str(int(char)) if char.isdecimal() else char for char in text)
    plain = re.sub(r"[\u066b\uff0e\uff0c\u060c]", ".", digits).replace(",", ".")
    return {
        float(number[index:])
        for number in re.findall(r"\d+(?:\.\d+)?", plain)
        for index in range(len(number.partition(".")[0]))
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=200_000, help="answers to generate")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    fuzz, start = Fuzz(options.seed), time.perf_counter()
    for _ in range(options.inputs):
        fuzz.check()
    seconds = time.perf_counter() - start
    slowest = f"slowest {1000 * fuzz.slowest:.1f} ms"
    print(f"{options.inputs:,} answers, each whole, cut and edited, in {seconds:.0f} s; {slowest}")
    for name, count in sorted(fuzz.counts.items()):
        print(f"{name:>20} {count:>9,}")
    for piece in WORST:
        start = time.perf_counter()
        fuzz.read(Grammar(0, 5), piece * 50_000)
        print(f"{piece!r} 50,000 times: {time.perf_counter() - start:.2f} s")
    print("\n".join(fuzz.broken[:40]))
    return 1 if fuzz.broken else 0


if __name__ == "__main__":
    sys.exit(main())
