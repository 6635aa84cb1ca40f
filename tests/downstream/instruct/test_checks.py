"""Rules and grounding: what is dropped, with which reason, and what is not."""

import pytest

from ml_filter.downstream.instruct.checks import Checks, Triple, grounding, repeated_share, unsupported_numbers
from ml_filter.downstream.instruct.config import CheckConfig

PASSAGE = (
    "Photosynthesis turns the energy of light into sugar. Chlorophyll absorbs red and blue light. In 1779 Jan "
    "Ingenhousz showed that plants release oxygen only in sunlight."
)
GOOD = Triple(
    "Explain what photosynthesis does.", "", "Photosynthesis turns light energy into sugar, and releases oxygen."
)


def reason(triple: Triple, parent: Triple | None = None, **changes) -> str | None:
    problem = Checks(CheckConfig.model_validate(changes)).problem(triple, PASSAGE, parent)
    return problem.reason if problem else None


def test_a_good_instruction_has_no_problem():
    assert reason(GOOD) is None


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"instruction": ""}, "empty"),
        ({"output": "<your answer>"}, "empty"),
        ({"output": "..."}, "empty"),
        ({"output": "N/A"}, "empty"),
        ({"output": "As an AI language model, I have no experience of photosynthesis."}, "refusal"),
        ({"output": "I'm sorry, but photosynthesis turns light into sugar."}, "refusal"),
        ({"output": "I cannot provide that, since light is energy."}, "refusal"),
        ({"instruction": "Explain"}, "instruction_length"),
        ({"output": "Light into sugar."}, "output_length"),
        ({"output": "Explain what photosynthesis does!"}, "output_length"),
        ({"instruction": "Say what light energy does.", "output": "Say what light energy does"}, "output_is_input"),
        ({"instruction": "Can you say what light energy does?", "output": "You say what light energy does."}, "echo"),
        ({"instruction": "According to the passage, what does chlorophyll absorb?"}, "mentions_source"),
        ({"output": "Photosynthesis turns light energy into sugar:\n```\nsugar"}, "open_code_block"),
        ({"output": "Light turns into sugar. " * 6}, "repetitive"),
        ({"output": "Photosynthesis was shown in 1845 by plants in sunlight."}, "number_not_in_source"),
        ({"output": "Volcanoes erupt because magma rises through cracks of continental crust."}, "not_grounded"),
    ],
)  # fmt: skip
def test_every_problem_has_its_reason(changes, expected):
    assert reason(GOOD._replace(**changes)) == expected


def test_the_source_may_be_mentioned_if_the_input_is_given_and_keywords_are_configurable():
    given = GOOD._replace(instruction="Summarise the following text.", input="Chlorophyll absorbs light.")
    assert reason(given) is None
    assert reason(GOOD, keywords=["(?i)oxygen"]) == "keyword"
    assert reason(GOOD, min_grounding=1.0) is None
    unsure = GOOD._replace(output="Photosynthesis turns light energy into starch, and releases oxygen.")
    assert reason(unsure) is None
    assert reason(unsure, min_grounding=1.0) == "not_grounded"


def test_an_evolution_must_differ_from_its_parent_and_must_not_speak_of_it():
    assert reason(GOOD, parent=GOOD) == "unchanged"
    assert reason(GOOD._replace(output=GOOD.output + " Light matters."), parent=GOOD) == "unchanged"
    assert reason(GOOD._replace(input="Light is energy."), parent=GOOD) == "unchanged"
    copy = GOOD._replace(instruction="Explain what photosynthesis does. Explain what photosynthesis does")
    assert reason(copy, parent=GOOD, max_copied_share=0.7) == "copy"
    leak = GOOD._replace(instruction="Rewritten instruction: name what photosynthesis turns into sugar.")
    assert reason(leak, parent=GOOD) == "mentions_prompt"
    better = GOOD._replace(instruction="Explain in two sentences what photosynthesis does with the energy of light.")
    assert reason(better, parent=GOOD) is None


def test_an_evolved_output_may_be_about_its_new_input():
    data = Triple(
        "Which leaf grew most?", "leaf A: 14 mm, leaf B: 37 mm", "Leaf B grew most, to 37 mm of photosynthesis."
    )
    assert reason(data, parent=GOOD) is None


def test_grounding_counts_content_words_whatever_their_ending_and_characters_without_spaces():
    assert grounding("Plants released oxygen.", PASSAGE) == 1.0
    assert grounding("Volcanoes release oxygen.", PASSAGE) == pytest.approx(2 / 3)
    assert grounding("It is so.", PASSAGE) is None
    assert grounding("\u690d\u7269\u306f\u5149", "\u690d\u7269\u306f\u5149\u3092\u4f7f\u3046") == 1.0
    assert grounding("\u706b\u5c71\u706b\u5c71", "\u690d\u7269\u306f\u5149\u3092\u4f7f\u3046") == 0.0


def test_numbers_are_compared_without_their_separators_and_small_ones_count_steps():
    task = Triple("Add 250 to it.", "", "1. In 1,779 it was 250. 2. In 1780 it was 99.5.")
    assert unsupported_numbers(task, PASSAGE) == ["1780", "99.5"]


def test_the_repeated_share_of_a_text_without_repetitions_is_zero():
    assert repeated_share(list("abcde")) == 0
    assert repeated_share(list("abcabc")) == 0.25
    assert repeated_share([]) == 0
