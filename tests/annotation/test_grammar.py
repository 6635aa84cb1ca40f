"""The grammar of an answer, as a table of examples. The prompt asks for `Score: <number from 0 to 5>`."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml_filter.annotation.grammar import AnswerError, Grammar

EDUCATION = Grammar(0, 5, "educational_value", "End with a line of this form:\nScore: <number from 0 to 5>")
NO, AMBIGUOUS, SCALE, RANGE, EMPTY, THOUGHTS, CUT = (
    "unparsable_score",
    "ambiguous_score",
    "other_scale",
    "out_of_range",
    "empty_answer",
    "only_reasoning",
    "cut_off",
)

EXAMPLES = [
    # labels and links
    ("Score: 4", 4),
    ("A good page.\nScore: 4", 4),
    ("A good page. Score: 4", 4),
    ("It explains cells well, score: 4", 4),
    ("SCORE:4", 4),
    ("Score : 4", 4),
    ("Score = 4", 4),
    ("Score - 3", 3),
    ("Score \u2013 3", 3),
    ("Score -> 3", 3),
    ("Score\uff1a4", 4),
    ("Score 4", 4),
    ("score 4/5", 4),
    ("## Score\n4", 4),
    ("## Score:\n\n**4**", 4),
    ("Score:\n4/5", 4),
    ("| Score | 4 |", 4),
    ("| Criterion | Score |\n|---|---|\n| Clarity | 4 |", NO),
    ("Rating: 4", 4),
    ("Rating: 4/5 stars", 4),
    ("The score is 4.", 4),
    ("My score is **2**.", 2),
    ("The final score for this page is 3.", 3),
    ("Conclusion: Score: 4", 4),
    ("1. Score: 4", 4),
    ("- Score: 4", 4),
    ("> Score: 4", 4),
    ("4", 4),
    ("**4**", 4),
    ("4/5", 4),
    ("4 out of 5", 4),
    ("4.", 4),
    # decoration
    ("**Score:** 3", 3),
    ("**Score: 3**", 3),
    ("**Score**: **3**", 3),
    ("**Score (0-5):** 3", 3),
    ("__Score__: `3`", 3),
    ('Score: "3"', 3),
    ("Score: [3]", 3),
    ("Score: (3)", 3),
    ("Score: <3>", 3),
    ("Score: <b>3</b>", 3),
    ("<score>3</score>", 3),
    ("<final_score>3</final_score>", 3),
    ("<answer>3</answer>", 3),
    ("\\boxed{3}", 3),
    ("So the answer is $\\boxed{3}$.", 3),
    ("Score: $\\boxed{3}$", 3),
    ("Score: \\(3\\)", 3),
    ("$$\\boxed{\\text{Score: } 3}$$", 3),
    ("Score: \\textbf{3}/5", 3),
    ("Score: \u2b50 3", 3),
    ("Score: 3\ufe0f\u20e3", 3),
    ("Score: <|begin_of_box|>3<|end_of_box|>", 3),
    ("Score: 3<|im_end|>\n<|im_start|>user\nScore: 5", 3),
    # numbers
    ("Score: 3.", 3),
    ("Score: 3.5", 3.5),
    ("Score: 3,5", 3.5),
    ("Score: 3.0", 3),
    ("Score: 03", 3),
    ("Score: \uff13", 3),
    ("评分\uff1a\uff14\uff0e\uff15", 4.5),
    ("Score: \u0663", 3),
    ("Score: \u0662\u066b\u0665", 2.5),
    ("Score: \u096a", 4),
    ("Score: \U0001d7d2", 4),  # a bold mathematical 4
    ("Score: -1", RANGE),
    ("Score: \u22121", RANGE),
    ("Score -1", RANGE),
    ("Score: 10", RANGE),
    ("Score: 5.01", RANGE),
    ("Score: " + "9" * 400, RANGE),
    ("Score: 4.5.1", NO),
    ("Score: 1,000", NO),
    ("Score: 4^2", NO),
    ("Score: 4\u00b2", NO),
    ("Score: 4\u00bd", NO),
    ("Score: 4 1/2", NO),
    ("Score: 4th", NO),
    ("Score: 3e0", NO),
    ("Score: 4:30", NO),
    ("Score: three", NO),
    ("Score: high", NO),
    ("Score: N/A", NO),
    ("Score: none", NO),
    ("Score: ?", NO),
    ("Score: 4?", NO),
    ("Score: 3+", NO),
    ("Score: +1", NO),
    ("Score: <3", NO),
    ("Score: >3", NO),
    ("Score: ~3", NO),
    ("Score:\n1. It is clear.\n2. It is short.", NO),
    # units and denominators
    ("Score: 4/5", 4),
    ("Score: 4 / 5.", 4),
    ("**Score:** 4 out of 5", 4),
    ("Score: 4 (out of 5)", 4),
    ("Score: 4 of 5", 4),
    ("Score: 4 von 5", 4),
    ("Score: 4 points", 4),
    ("Score: 4 points out of 5", 4),
    ("Score: 4 (on a scale of 0 to 5)", 4),
    ("Score: 4 (0-5)", 4),
    ("Score (out of 5): 4", 4),
    ("Score 0-5: 4", 4),
    ("Score (0\u20135): 3", 3),
    ("Score: 4 (good)", 4),
    ("Score: 4 - clear and focused", 4),
    ("Score: 4 because it has 3 examples", 4),
    ("Score: 4/5 (80%)", 4),
    ("Score: 4/10", SCALE),
    ("Score: 8/10", SCALE),
    ("Score: 4 out of 10", SCALE),
    ("Score: 4 (out of 10)", SCALE),
    ("Score: 4 (1-10)", SCALE),
    ("Score: 4 on a scale of 1 to 10", SCALE),
    ("Score (1-10): 4", SCALE),
    ("Score (out of 10): 4", SCALE),
    ("**4**/10", SCALE),
    ("Score: 4 (max. 10)", SCALE),
    ("Score: 4%", SCALE),
    ("Score: 80 percent", SCALE),
    ("Score: 4/5 = 0.8", NO),
    # ranges and scales
    ("Score: 3-4", NO),
    ("Score: 3 - 4", NO),
    ("Score: 3\u20134", NO),
    ("Score: 3 to 4", NO),
    ("Score: 3 or 4", NO),
    ("Score: 3 or maybe 4", NO),
    ("Score: 3, maybe 4", NO),
    ("Score: 3/4", SCALE),
    ("Score: 3, 4", NO),
    ("Score: 3 bis 4", NO),
    ("Score: between 3 and 4", NO),
    ("Score: 0-5", NO),
    ("Score: <0 to 5>", NO),
    ("Score: <number from 0 to 5>", NO),
    ("Score: 0-5\nScore: 4", 4),
    ("Score: <number from 0 to 5>\nScore: 4", 4),
    ("Score: 0/1/2/3/4/5", SCALE),
    ("Score: 0 1 2 3 4 5", NO),
    ("score 0 is bad, score 5 is good. Score: 2", 2),
    ("Score 3: explains its subject", NO),
    # sums
    ("Score: 1 + 1 + 1 = 3", 3),
    ("Total score: 2 + 1 = 3", 3),
    ("The total score is 3.", 3),
    ("Score: 1+1+0+0+0=2/5", 2),
    ("Score = 1 + 1 + 1 = **3** points", 3),
    ("Score: 1 (relevance) + 1 (depth) = 2", 2),
    ("Score: 1 point + 1 point => 2 points", 2),
    ("Score: (3 + 4 + 5) / 3 = 4", 4),
    ("Score: 5 - 1 - 1 = 3", 3),
    ("Score: 3 = 1 + 1 + 1", 3),
    ("Score: 2 = touches a subject", 2),
    ("Score: 1 + 1 + 1", NO),
    ("Score: 1 + 1 = 3", NO),
    ("Score: 3 = 4", NO),
    ("Score: 1\n+ 1\n+ 1", NO),
    ("Score: 1\n+ 1\n+ 1\n= 3", 3),
    ("Score: 1 + 1 + 1 = 3/10", SCALE),
    # additive and several criteria
    ("- Relevant: +1\n- Coherent: +1\n- For schools: +1\n\nTotal: 3", 3),
    ("+1 for its facts\n+1 for its order\nTotal points: 2\n", 2),
    ("Relevance score: 1\nDepth score: 1\nTotal score: 2", 2),
    ("Score: 1 (relevance)\nScore: 1 (depth)\nTotal: 2", 2),
    ("Clarity score: 5\nDepth score: 3\nScore: 4", 4),
    ("Score: 3 (clarity score: 5)", 3),
    ("Clarity: 5\nDepth: 3\nFinal score: 4", 4),
    ("Clarity score: 5", NO),
    ("Clarity score: 5\nDepth score: 3", NO),
    ("Score for clarity: 5", NO),
    ("Score (clarity): 5", NO),
    ("Confidence score: 0.9\nScore: 2", 2),
    ("Maximum score: 5\nScore: 2", 2),
    ("Educational value score: 4", 4),
    ("Educational score: 4", 4),
    # given twice
    ("Score: 4\n\nScore: 4", 4),
    ("**Score: 4**\nThe score is 4.", 4),
    ("Score: 2\nScore: 4", AMBIGUOUS),
    ("Score: 2 Score: 4", AMBIGUOUS),
    ("Score: 4\n\nNext page: ...\nScore: 2", AMBIGUOUS),
    ("Score: 4\nOn reflection the page is thin.\nScore: 2", 2),
    ("Score: 4. Wait, that is too much. Score: 2", 2),
    ("Score: 4\nFinal score: 2", 2),
    ("Final score: 2\nScore: 4", AMBIGUOUS),
    ("Score: 3 or 4\nFinal score: 3", 3),
    ("Score: 4/10\nScore: 2", AMBIGUOUS),
    ("Score: 3 \\boxed{4}", AMBIGUOUS),
    ("The score is 1, I first thought. Score: 4\nA page with a score of 5, or a score 5 page, would be whole.", 4),
    # prose
    ("I give it a score of **2**, all in all.", 2),
    ("I would rate this page 3/5.", 3),
    ("I'd give this page a 3.", 3),
    ("This page deserves a score of 4 out of 5.", 4),
    ("This page gets 4 out of 5.", NO),
    ("I would not give it a score of 5.", NO),
    ("I would give it a score of 5 if it had exercises.", NO),
    ("A score of 5 would need exercises.", NO),
    ("It is far from a score of 1.", NO),
    ("A first guess would be Score: 4, but it has gaps.", NO),
    ("As a first guess, Score: 4", NO),
    ("If it had exercises, Score: 5.", NO),
    ("Why would it get a score of 5?", NO),
    ("The page explains 4 out of 5 steps.", NO),
    ("It has 5 parts.", NO),
    ("underscore 4, scores: 3", NO),
    ("Score: see below. It has 3 parts.", NO),
    # languages
    ("Punktzahl: 4", 4),
    ("Gesamtpunktzahl: 1 + 2 = 3", 3),
    ("Bewertung: 4 von 5 Punkten", 4),
    ("Die Punktzahl ist 4.", 4),
    ("Puntuación: 4", 4),
    ("Puntuación final: 4 de 5", 4),
    ("Punteggio: 3,5", 3.5),
    ("Pontuação total: 3", 3),
    ("Score final : 4/5", 4),
    ("Оценка: 4 из 5", 4),
    (
        "Итоговая оценка: 4 балла",
        4,
    ),
    ("评分\uff1a4分\uff08满分5分\uff09", 4),
    ("最终评分\uff1a3\u20134分", NO),
    ("总分\uff1a1 + 2 = 3分", 3),
    ("スコア\uff1a\uff14点", 4),
    ("점수: 4점", 4),
    ("الدرجة: \u0664", 4),
    ("स\u094dक\u094bर: \u096a", 4),
    # JSON
    ('{"reason": "ok", "score": 4}', 4),
    ('```json\n{"score": 4}\n```', 4),
    ('{"educational_score": "4"}', 4),
    ('{"score": "4/5"}', 4),
    ('{"score": "4/10"}', SCALE),
    ('{"score": 4, "max_score": 10}', SCALE),
    ('{"score": null}', NO),
    ('{"score": [3, 4]}', NO),
    ('{"score": 3, "clarity_score": 5}', 3),
    ('{"clarity": {"score": 5}, "score": 3}', 3),
    ('{"clarity": {"score": 5}, "depth": {"score": 5}}', NO),
    ('{"score": 3}\n{"score": 4}', AMBIGUOUS),
    ("{'score': 4, 'reason': 'ok'}", 4),
    # reasoning
    ("<think>Score: 1</think>\nScore: 4", 4),
    ("Hm, Score: 1</think>Score: 4", 4),
    ("<thinking>Score: 1</thinking><score>4</score>", 4),
    ("[THINK]Score: 1[/THINK]Score: 4", 4),
    ("<think>a</think>Score: 4\n<think>Score: 1</think>", 4),
    ("<think>The tag <think> is closed by </think>. Score: 4", THOUGHTS),
    ("<think>Score: 4", THOUGHTS),
    ("<Thinking>Score: 4\n", THOUGHTS),
    ("<reasoning>Score: 4", THOUGHTS),
    ("[THINK]\nScore: 4\n", THOUGHTS),
    ("Score: 4\n<think>Hm", THOUGHTS),
    ("<think>Score: 4</think>", THOUGHTS),
    ("<|channel|>analysis<|message|>Score: 1<|end|><|start|>assistant<|channel|>final<|message|>Score: 4<|return|>", 4),
    ("<|channel|>analysis<|message|>Score: 1<|end|>", THOUGHTS),
    ("analysisThe page has gaps. Score: 1assistantfinalScore: 4", 4),
    ("analysisThe page has gaps.\nScore: 1", THOUGHTS),
    ("Analysis: the page has gaps.\nScore: 1", 1),
    ("Here is my thought process: Score: 1. Here is my response: Score: 4", 4),
    ("\u25c1think\u25b7Score: 1\u25c1/think\u25b7Score: 4", 4),
    ("", EMPTY),
    (" \n", EMPTY),
]

CUT_OFF = [
    ("", CUT),
    ("The page is", CUT),
    ("<think>Score: 4\n", CUT),
    ("<think>a</think>", CUT),
    ("a first guess would be Score: 4, but", CUT),
    ("Score: 4", CUT),
    ("Score: 4.", CUT),
    ("Score: 4/5", CUT),
    ("**Score: 4**", CUT),
    ("Score: 4, but", CUT),
    ("Score: 1 + 1", CUT),
    ("Score: 2\nOn reflection, Score: 4", CUT),
    ("Score: 2\nWait, the", CUT),
    ('{"reason": "ok", "score": 4', CUT),
    ('{"reason": "ok", "sco', CUT),
    ("The page is good.\nScore: 4\nIt", CUT),  # perhaps reasoning that the chat template has opened
    ("<think>Hm</think>The page is good.\nScore: 4\nIt", 4),
    ("Score: 4\n", 4),
    ("**Score: 4**\nThe page explains", 4),
    ("Score: 4. The page explains", 4),
    ("<score>4</score>", 4),
    ("\\boxed{4}", 4),
    ("Score: 9\nThe", RANGE),
]


def outcome(answer: str, grammar: Grammar = EDUCATION, *, cut_off: bool = False) -> float | str:
    try:
        return grammar.read(answer, cut_off=cut_off).value.number
    except AnswerError as error:
        return error.code


@pytest.mark.parametrize(("answer", "expected"), EXAMPLES)
def test_an_answer_has_the_score_that_it_states_or_the_reason_why_there_is_none(answer, expected):
    assert outcome(answer) == expected


@pytest.mark.parametrize(("answer", "expected"), CUT_OFF)
def test_a_cut_off_answer_has_a_score_only_if_more_text_could_not_change_it(answer, expected):
    assert outcome(answer, cut_off=True) == expected


UNIQUE = [(answer, score) for answer, score in EXAMPLES if isinstance(score, int | float) and answer.count("core") < 2]


@given(st.sampled_from(UNIQUE), st.data())
def test_a_cut_changes_no_score_but_can_lose_it(example, data):
    answer, score = example
    cut = answer[: data.draw(st.integers(0, len(answer)))]
    read = outcome(cut, cut_off=True)
    assert read == score or isinstance(read, str)


@given(
    st.sampled_from(EXAMPLES), st.sampled_from(["<think>", "[THINK]", "<reasoning>", "<|channel|>analysis<|message|>"])
)
def test_nothing_in_unfinished_reasoning_is_a_score(example, opening):
    if not re.search("think|channel|turn|response|final", example[0], re.IGNORECASE):
        assert outcome(f"{opening}{example[0]}") == THOUGHTS
        assert outcome(f"{opening}{example[0]}", cut_off=True) == CUT


@given(st.sampled_from(UNIQUE), st.sampled_from(["The page is good.", "It has 3 parts, not 4.", "Why no score of 0?"]))
def test_a_line_of_prose_before_or_after_changes_no_score(example, prose):
    answer, score = example
    if "core" in answer and "</think>" not in answer:
        assert outcome(f"{prose}\n{answer}") == score or answer.startswith(("{", "`", "analysis"))
