import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml_filter.annotation.grammar import AnswerError
from ml_filter.annotation.parsing import Verdict, read_verdict, weighted_mean
from ml_filter.annotation.prompts import Curve, PlattScaling, Prompt
from ml_filter.annotation.responses import Answer, Token
from tests.annotation.misbehaving import PROMPT

SHORT = Prompt.model_validate(PROMPT)
CHOICE = Prompt.model_validate(
    {**PROMPT, "mode": "choice", "api": "completion", "pattern": "", "choices": {" good": 5, " fine": 5, " bad": 0}}
)


CODES = {"empty_answer", "unparsable_score", "ambiguous_score", "other_scale", "out_of_range", "only_reasoning"}


def logs(**probabilities: float) -> dict[str, float]:
    return {text.replace("_", " "): math.log(p) for text, p in probabilities.items()}


def tokens(*texts: str, last: dict[str, float]) -> list[Token]:
    return [*(Token(text, {}) for text in texts[:-1]), Token(texts[-1], last)]


def error_of(text: str, prompt: Prompt = SHORT) -> str:
    with pytest.raises(AnswerError) as caught:
        read_verdict(Answer(text), prompt)
    return caught.value.code


# --- The parsed answer -----------------------------------------------------------------------------------------------


def test_the_words_before_the_score_are_its_reason():
    assert read_verdict(Answer("A good page.\nScore: 4"), SHORT) == Verdict(4.0, None, "A good page.")
    assert read_verdict(Answer("Score: 4"), SHORT).reason is None


def test_the_last_match_wins_over_a_restated_scale():
    assert read_verdict(Answer("On the scale, score 0 is bad, score 5 is good. Score: 2"), SHORT).score == 2.0


@pytest.mark.parametrize(
    ("text", "score"), [("Score: 2,5", 2.5), ("Score: 2.5", 2.5), ("score = 0", 0.0), ("**Score:** 5.", 5.0)]
)
def test_decimals_may_have_a_comma_and_scores_may_be_dressed_up(text, score):
    assert read_verdict(Answer(text), SHORT).score == score


@pytest.mark.parametrize(
    ("digits", "score"),
    [
        ("\u0663", 3.0),  # Arabic-Indic
        ("\u0662\u066b\u0665", 2.5),  # with the Arabic decimal separator
        ("\u096a", 4.0),  # Devanagari
        ("\uff13", 3.0),  # full width
        ("\u4e94", 5.0),  # a Chinese numeral
    ],
)
def test_digits_of_other_scripts_are_numbers(digits, score):
    pattern = r"(?i)score: ([\d.,\u066b]+|\w)"
    assert read_verdict(Answer(f"Score: {digits}"), SHORT.model_copy(update={"pattern": pattern})).score == score


@given(st.integers(0, 5), st.sampled_from([0x660, 0x6F0, 0x966, 0x9E6, 0xE50, 0xFF10]))
def test_a_digit_means_the_same_in_every_script(value, zero):
    assert read_verdict(Answer(f"Score: {chr(zero + value)}"), SHORT).score == value


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "empty_answer"),
        (" \n", "empty_answer"),
        ("No idea.", "unparsable_score"),
        ("Score: high", "unparsable_score"),
        ("Score: 5.01", "out_of_range"),
        ("Score: 3. Score: 10", "ambiguous_score"),
        (f"Score: {'9' * 400}", "out_of_range"),
    ],
)
def test_an_answer_without_a_score_has_a_code(text, code):
    assert error_of(text) == code


def test_a_match_whose_group_is_empty_or_no_number_is_no_score():
    assert error_of("Score: none", SHORT.model_copy(update={"pattern": r"Score: (\d)?"})) == "unparsable_score"
    assert error_of("Score: none", SHORT.model_copy(update={"pattern": r"Score: (\w+)"})) == "unparsable_score"


@given(st.text())
def test_any_text_gives_a_score_in_range_or_an_error_code(text):
    try:
        assert 0 <= read_verdict(Answer(f"{text} score {text}"), SHORT).score <= 5
    except AnswerError as error:
        assert error.code in CODES


USUAL = Prompt.model_validate({name: value for name, value in PROMPT.items() if name != "pattern"})


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("Score\uff1a4", 4.0),
        ("Score (0-5): 3", 3.0),
        ("**Score (0\u20135):** 3", 3.0),
        ("Score (out of 5): 3/5", 3.0),
        ("Score 0-5: 3", 3.0),
        ("The score is 4.", 4.0),
        ("I give it a score of **2**, all in all.", 2.0),
        ("score 1", 1.0),
        ("So \\boxed{4}", 4.0),
        ("Score: $\\boxed{3}$", 3.0),
        ("**Score:** 4", 4.0),
        ("## Score\n4", 4.0),
        ("| Score | 4 |", 4.0),
        ("<score>4</score>", 4.0),
        ("Final Score -> <2>", 2.0),
        ("Score - 4", 4.0),
        ('{"educational_score": "4"}', 4.0),
        ("Score: \u0662\u066b\u0665", 2.5),
        (
            "The score is 1, I first thought. Score: 4\nA page with a score of 5, or a score 5 page, would be whole.",
            4.0,
        ),
    ],
)
def test_a_score_is_found_however_a_model_labels_it(text, score):
    assert read_verdict(Answer(text), USUAL).score == score


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Score: -1", "out_of_range"),
        ("Score: \u22121", "out_of_range"),
        ("Score: 3\nScore: 9", "ambiguous_score"),
        ("Score: 0-5", "unparsable_score"),
        ("Score: 10 - 15", "unparsable_score"),
        ("Score: <0 to 5>", "unparsable_score"),
        ("Score: 3 or 4", "unparsable_score"),
        ("underscore 4, scores: 3", "unparsable_score"),
        ("It has 5 parts.", "unparsable_score"),
    ],
)
def test_a_scale_or_a_number_out_of_it_is_no_score(text, code):
    assert error_of(text, USUAL) == code


def test_the_reason_ends_before_the_marks_of_the_label():
    assert read_verdict(Answer("A good page.\n\n**Score:** 4"), USUAL) == Verdict(4.0, None, "A good page.")


LABELS = (
    "Score: {}",
    "**Score:** {}",
    "**Score**: **{}**",
    "Score\uff1a{}",
    "Score (0-5): {}",
    "score = {}",
    "\\boxed{{{}}}",
)
PROSE = (
    "A score 5 page would explain more.",
    "It is far from a score of 1.",
    "Why no score of 0? It teaches.",
    "2 + 2 = 4",
)
VALUES = st.tuples(st.integers(0, 5), st.sampled_from([0x30, 0x660, 0x966, 0xFF10]), st.sampled_from(["", ".5", ",5"]))


@given(
    VALUES,
    st.lists(st.sampled_from([*PROSE, *(label.format(3) for label in LABELS)])),
    st.sampled_from(LABELS),
    st.lists(st.sampled_from(PROSE)),
)
def test_a_labelled_score_is_read_whatever_is_said_around_it_but_no_other_label(value, before, label, after):
    whole, zero, rest = value
    written = label.format(chr(zero + whole) + rest)
    expected = whole + (0.5 if rest else 0)
    answer = Answer("\n".join([*before, written, *after]))
    if expected != 3 and set(before) - set(PROSE):
        assert error_of(answer.text, USUAL) == "ambiguous_score"
    elif expected > 5:
        assert error_of(answer.text, USUAL) == "out_of_range"
    else:
        assert read_verdict(answer, USUAL).score == expected


@given(st.text(st.sampled_from("score Score:is*_(0-5)[]{}<>|=\\boxed\n 9,."), max_size=200))
def test_the_grammar_gives_a_score_in_range_or_an_error_code(text):
    try:
        assert 0 <= read_verdict(Answer(text), USUAL).score <= 5
    except AnswerError as error:
        assert error.code in CODES


def test_a_long_answer_without_a_score_is_no_work():
    for piece in ("score ", "* ", "(", "score (", "0-", "\\boxed ", " "):
        assert error_of("." + piece * 50_000, USUAL) == "unparsable_score"


@pytest.mark.parametrize(
    ("text", "prompt", "outcome"),
    [
        ("<think>Score: 4", USUAL, "cut_off"),
        ("a first guess would be Score: 4, but", USUAL, "cut_off"),
        ("Score: 4", SHORT, "cut_off"),
        ("Score: 4\nThe page", SHORT, 4.0),
        (" 4\n\nPage:", SHORT.model_copy(update={"pattern": "([0-5])"}), 4.0),
    ],
)
def test_a_cut_off_answer_names_max_tokens_unless_its_score_is_complete(text, prompt, outcome):
    answer = Answer(text, cut_off=True)
    if isinstance(outcome, float):
        assert read_verdict(answer, prompt).score == outcome
        return
    with pytest.raises(AnswerError, match="max_tokens") as caught:
        read_verdict(answer, prompt)
    assert caught.value.code == outcome


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ("Score: 1 + 1 + 1 = 3", 3.0),
        ("Score: 3 (clarity score: 5)", 3.0),
        ("Score: 4/10", "other_scale"),
        ("Score: 3 or 4", "unparsable_score"),
        ("I say 4/5", "unparsable_score"),
    ],
)
def test_the_grammar_also_holds_for_what_a_pattern_matches(text, outcome):
    if isinstance(outcome, float):
        assert read_verdict(Answer(text), SHORT).score == outcome
    else:
        assert error_of(text) == outcome


# --- JSON ------------------------------------------------------------------------------------------------------------

AS_JSON = Prompt.model_validate({**PROMPT, "mode": "json", "pattern": ""})


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ('{"reason": "It explains.", "score": 4}', Verdict(4.0, None, "It explains.")),
        ('{"score": 4, "reason": "It explains."}', Verdict(4.0, None, "It explains.")),
        ('{"reason": "I\'d \\"score\\": 1, score: 2", "score": 4}', Verdict(4.0, None, 'I\'d "score": 1, score: 2')),
        ('```json\n{"reason": "It explains.", "score": 4}\n```', Verdict(4.0, None, "It explains.")),
        ('Let me {think}.\n{"reason": "It explains.", "score": "3.5"} Done.', Verdict(3.5, None, "It explains.")),
        ('{"reason": "Braces {here} and }.", "score": 4}', Verdict(4.0, None, "Braces {here} and }.")),
        ('{"score": 4, "reason": "cut off in the mid', Verdict(4.0, None, None)),
        ('{"reason": 7, "score": 4}', Verdict(4.0, None, None)),
        ('{"Reason": "x", "Score": 4}', Verdict(4.0, None, None)),
    ],
)
def test_a_score_is_read_from_json_whole_fenced_or_cut_off(text, verdict):
    assert read_verdict(Answer(text), AS_JSON) == verdict


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ('{"reason": "It explains.", "sco', "unparsable_score"),
        ('{"reason": "It explains.", "score": ', "unparsable_score"),
        ('{"reason": "the score is 4"}', "unparsable_score"),
        ('{"score": null}', "unparsable_score"),
        ('{"score": -1}', "out_of_range"),
        ('{"score": 6}', "out_of_range"),
        ("[" * 100_000, "unparsable_score"),
    ],
)
def test_json_without_a_score_in_range_has_a_code(text, code):
    assert error_of(text, AS_JSON) == code


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ('{"reason": "ok", "score": 4', "cut_off"),
        ('{"reason": "ok", "score": 4}\n\n\n', None),
        ('Let me see: {"score": 4}\n', "cut_off"),
        ('{"score": 4, "reason": "o', None),
        ('{"score": 4', "cut_off"),
    ],
)
def test_a_score_in_json_is_complete_once_a_comma_or_brace_follows(text, code):
    answer = Answer(text, cut_off=True)
    if code is None:
        assert read_verdict(answer, AS_JSON).score == 4.0
        return
    with pytest.raises(AnswerError) as caught:
        read_verdict(answer, AS_JSON)
    assert caught.value.code == code


def test_json_that_nests_without_end_still_has_its_score():
    assert read_verdict(Answer('{"a":' * 100_000 + '"score": 3'), AS_JSON) == Verdict(3.0, None, None)


@given(st.text(), st.integers(0, 5), st.booleans())
def test_any_reason_in_json_is_read_back_with_the_score_beside_it(reason, score, fenced):
    text = json.dumps({"reason": reason, "score": score}, ensure_ascii=fenced)
    verdict = read_verdict(Answer(f"```json\n{text}\n```" if fenced else text), AS_JSON)
    assert verdict == Verdict(float(score), None, reason)


def test_the_expected_score_in_json_stands_where_the_score_does():
    top = logs(_4=0.5, _2=0.25, _x=0.25)
    pieces = [Token(text, {}) for text in ('{"', "reason", '":', ' "', "4", '",', ' "', "score", '":')]
    answer = Answer('{"reason": "4", "score": 4}', [*pieces, Token(" 4", top), Token("}", {})])
    assert read_verdict(answer, AS_JSON).expected_score == pytest.approx((4 * 0.5 + 2 * 0.25) / 0.75)


# --- The expected score ----------------------------------------------------------------------------------------------


def test_the_expected_score_is_the_mean_over_the_numbers_in_the_scores_place():
    answer = Answer("Score: 4", tokens("Score", ":", " 4", last=logs(_4=0.5, _3=0.3, _1=0.1, _high=0.1)))
    assert read_verdict(answer, SHORT).expected_score == pytest.approx((4 * 0.5 + 3 * 0.3 + 1 * 0.1) / 0.9)


def test_one_number_written_two_ways_counts_with_both_and_numbers_out_of_range_do_not():
    answer = Answer("Score: 4", tokens("Score: ", "4", last={**logs(_4=0.25, _2=0.25, _9=0.2), "4": math.log(0.25)}))
    assert read_verdict(answer, SHORT).expected_score == pytest.approx((4 * 0.5 + 2 * 0.25) / 0.75)


def test_tokens_around_the_text_do_not_shift_the_place():
    top = logs(_4=0.5, _2=0.5)
    reasoning = [Token("<think>", {}), Token(" Score: 1", logs(_1=1.0)), Token("</think>", {})]
    answer = Answer("Score: 4", [*reasoning, *tokens("\n", "Score:", " 4", last=top), Token("<end>", {})])
    assert read_verdict(answer, SHORT).expected_score == pytest.approx(3.0)


def test_halves_of_characters_before_the_score_do_not_shift_the_place():
    answer = Answer(
        "\N{GRINNING FACE} Score: 4", tokens("\ufffd", "\ufffd", " Score:", " 4", last=logs(_4=0.5, _2=0.5))
    )
    assert read_verdict(answer, SHORT).expected_score == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("text", "texts"),
    [
        ("Score: 4", ("Score: 4",)),  # the score shares its token
        ("Score: 3.5", ("Score: ", "3")),  # it goes on in tokens that are not there
        ("Score: 4", ("Something", " else 4")),
        ("Score: 4", ("Score", ": ")),
    ],
)
def test_where_the_place_is_unclear_there_is_no_expected_score(text, texts):
    answer = Answer(text, tokens(*texts, last=logs(_4=0.5, _2=0.5)))
    assert read_verdict(answer, SHORT).expected_score is None


def test_a_score_of_several_tokens_has_no_expected_score():
    top = logs(_1=0.9, _2=0.1)
    ten = SHORT.model_copy(update={"score": SHORT.score.model_copy(update={"max": 10.0})})
    answer = Answer("Score: 10", [Token("Score:", {}), Token(" ", {}), Token("1", top), Token("0", top)])
    assert read_verdict(answer, ten) == Verdict(10.0, None)


@given(st.dictionaries(st.sampled_from("012345"), st.floats(-700, 0), min_size=1))
def test_the_expected_score_lies_between_the_numbers_it_is_made_of(top):
    answer = Answer("Score: 3", [Token("Score: ", {}), Token("3", top)])
    expected = read_verdict(answer, SHORT).expected_score
    assert expected is not None
    assert min(map(float, top)) - 1e-9 <= expected <= max(map(float, top)) + 1e-9


@given(st.lists(st.tuples(st.floats(0, 5), st.floats(-800, 0)), min_size=1, max_size=8), st.floats(-1000, 1000))
def test_a_weighted_mean_lies_between_its_values_and_knows_no_scale_of_weights(weights, shift):
    mean = weighted_mean(weights)
    assert mean is not None
    assert min(v for v, _ in weights) - 1e-9 <= mean <= max(v for v, _ in weights) + 1e-9
    assert weighted_mean([(v, w + shift) for v, w in weights]) == pytest.approx(mean, abs=1e-6)


def test_the_mean_of_nothing_is_unknown():
    assert weighted_mean([]) is None


# --- Choices ---------------------------------------------------------------------------------------------------------


def test_a_choice_weighs_the_geometric_mean_of_each_values_labels():
    top = logs(_good=0.4, _fine=0.1, _bad=0.3, _other=0.2)
    verdict = read_verdict(Answer(" good", [Token(" good", top)]), CHOICE)
    assert verdict.score == 0.0  # 0.3 is above the root of 0.4 * 0.1, which is 0.2
    assert verdict.expected_score == pytest.approx(5 * 0.2 / (0.2 + 0.3))


def test_a_label_that_is_not_listed_counts_like_the_least_likely_that_is():
    top = logs(_good=0.4, _bad=0.2, _other=0.1)
    verdict = read_verdict(Answer(" good", [Token(" good", top)]), CHOICE)
    good = math.sqrt(0.4 * 0.1)
    assert verdict.expected_score == pytest.approx(5 * good / (good + 0.2))


def test_a_choice_needs_log_probabilities_and_a_listed_label():
    assert error_of(" good", CHOICE) == "no_logprobs"
    with pytest.raises(AnswerError) as caught:
        read_verdict(Answer(" the", [Token(" the", logs(_the=0.9))]), CHOICE)
    assert caught.value.code == "unparsable_score"


WRITTEN = CHOICE.model_copy(update={"top_logprobs": 0})


@pytest.mark.parametrize(
    ("text", "cut_off", "outcome"),
    [
        ("**Good.**", False, 5.0),
        ("<think>bad</think>good", True, 5.0),
        ("<think>bad", True, "cut_off"),
        ("<think>good", False, "only_reasoning"),
        ("good or bad", False, "unparsable_score"),
    ],
)
def test_a_written_choice_is_the_whole_answer(text, cut_off, outcome):
    try:
        assert read_verdict(Answer(text, cut_off=cut_off), WRITTEN).score == outcome
    except AnswerError as error:
        assert error.code == outcome


# --- Calibration -----------------------------------------------------------------------------------------------------


@given(st.floats(0.01, 10), st.floats(-20, 20), st.floats(0, 5), st.floats(0, 5))
def test_calibration_with_a_positive_slope_keeps_order_and_range(slope, intercept, a, b):
    prompt = SHORT.model_copy(update={"calibration": PlattScaling(slope=slope, intercept=intercept, source="test")})
    low, high = sorted([a, b])
    assert 0 <= prompt.calibrated(low) <= prompt.calibrated(high) <= 5


POINTS = st.lists(
    st.tuples(st.floats(-20, 20), st.floats(0, 1)), min_size=2, max_size=6, unique_by=lambda point: point[0]
)


@given(POINTS, st.floats(0, 5), st.floats(0, 5))
def test_a_curve_keeps_order_and_range(points, a, b):
    xs, shares = (sorted(values) for values in zip(*points, strict=True))
    curve = Curve(annotator="m", points=tuple(zip(xs, shares, strict=True)), source="test")
    prompt = SHORT.model_copy(update={"calibration": curve})
    low, high = sorted([a, b])
    assert 5 * shares[0] <= prompt.calibrated(low) <= prompt.calibrated(high) <= 5 * shares[-1]


def test_a_curve_is_linear_between_its_points_and_flat_beyond():
    curve = Curve(annotator="m", points=((-1, 0.2), (1, 0.6)), source="test")
    prompt = SHORT.model_copy(update={"calibration": curve})
    assert [prompt.calibrated(score) for score in (0, 2.5, 5)] == pytest.approx([1.0, 2.0, 3.0])


def test_a_slope_of_one_without_intercept_changes_nothing():
    prompt = SHORT.model_copy(update={"calibration": PlattScaling(slope=1, intercept=0, source="test")})
    assert prompt.calibrated(1.25) == pytest.approx(1.25)
    shifted = SHORT.model_copy(update={"calibration": PlattScaling(slope=1, intercept=math.log(3), source="test")})
    assert shifted.calibrated(2.5) == pytest.approx(5 * 0.75)
