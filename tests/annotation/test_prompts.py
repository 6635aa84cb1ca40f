import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from misbehaving import PROMPT

from ml_filter.annotation.prompts import SLOT, Prompt, load_prompt, prompt_directory
from ml_filter.errors import ConfigError

SHORT = Prompt.model_validate(PROMPT)
SHIPPED = sorted(path.stem for path in prompt_directory().glob("*.yaml"))


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_prompt_loads_by_its_name(name):
    prompt = load_prompt(name)
    assert prompt.name == name
    assert prompt.description
    assert "a page about cells" in prompt.render("a page about cells")


def test_shipped_prompts_have_digests_of_their_own():
    assert len({load_prompt(name).digest for name in SHIPPED}) == len(SHIPPED) >= 5


def test_an_unknown_name_is_answered_with_the_known_ones(tmp_path):
    with pytest.raises(ConfigError, match=", ".join(SHIPPED)):
        load_prompt("educational")
    with pytest.raises(ConfigError, match=r"absent\.yaml does not exist"):
        load_prompt(str(tmp_path / "absent.yaml"))


def test_a_new_description_leaves_the_digest_and_a_new_word_in_the_text_does_not():
    assert Prompt.model_validate({**PROMPT, "description": "Says more."}).digest == SHORT.digest
    assert Prompt.model_validate({**PROMPT, "text": PROMPT["text"] + "!"}).digest != SHORT.digest


@pytest.mark.parametrize(
    "change",
    [
        {"system": "You are strict."},
        {"pattern": r"(\d)"},
        {"score": {"min": 0, "max": 4}},
        {"max_tokens": 7},
        {"max_text_chars": 100},
        {"top_logprobs": 5},
        {"calibration": {"slope": 1.0, "intercept": 0.0, "source": "a guess"}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_whatever_shapes_question_or_reading_changes_the_digest(change):
    assert Prompt.model_validate({**PROMPT, **change}).digest != SHORT.digest


def test_the_digest_does_not_depend_on_the_order_of_fields():
    assert Prompt.model_validate(dict(reversed(PROMPT.items()))).digest == SHORT.digest


def test_every_wrong_field_of_a_file_is_named(prompt_file):
    path = prompt_file(max_tokens=0, mode="guess", colour="red")
    with pytest.raises(ConfigError) as caught:
        load_prompt(path)
    for part in (path, "max_tokens", "mode", "colour"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"text": "no slot"}, "exactly once"),
        ({"text": "{text} {text}"}, "exactly once"),
        ({"pattern": "(unclosed"}, "no regular expression"),
        ({"pattern": "no group"}, "exactly one group"),
        ({"score": {"min": 5, "max": 5}}, "score: Value error, max .* must be above min"),
        ({"mode": "choice", "choices": {" a": 1}}, "at least two choices"),
        ({"mode": "choice", "choices": {" a": 1, " b": 6}}, "outside the score range"),
        ({"api": "completion", "system": "Be strict."}, "no system message"),
    ],
)
def test_a_prompt_that_cannot_work_is_refused_with_the_reason(change, says, prompt_file):
    with pytest.raises(ConfigError, match=says):
        load_prompt(prompt_file(**change))


def test_a_file_that_is_no_yaml_is_named(tmp_path):
    (tmp_path / "broken.yaml").write_text("name: [")
    with pytest.raises(ConfigError, match=r"broken\.yaml is not YAML"):
        load_prompt(str(tmp_path / "broken.yaml"))


SPECIAL_TOKENS = (
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|start_header_id|>",
    "<\uff5cUser\uff5c>",
    "<s>",
    "</s>",
    "<start_of_turn>",
    "[INST]",
    "[/INST]",
)


@pytest.mark.parametrize("token", SPECIAL_TOKENS)
def test_special_tokens_of_chat_templates_are_broken_up(token):
    assert token not in SHORT.render(f"before {token} after")


@pytest.mark.parametrize("text", ["a < b", "x |> f", "<p>", "<script>", "[1]", "[in]", "a<|>b", "f <| g"])
def test_ordinary_signs_are_left_alone(text):
    assert text in SHORT.render(text)


@given(st.text(max_size=200))
def test_a_document_stands_in_the_slot_and_changes_nothing_around_it(document):
    before, after = SHORT.text.split(SLOT)
    shown = SHORT.render(document)
    assert shown.startswith(before)
    assert shown.endswith(after)
    assert not any(token in shown for token in SPECIAL_TOKENS)


def test_a_slot_within_the_document_stays_as_it_is():
    assert SHORT.render(r"my {text} and \1").splitlines()[1] == r"my {text} and \1"


@given(st.text("ab c\n", max_size=60), st.integers(1, 20), st.booleans())
def test_no_more_than_max_text_chars_of_a_document_are_shown(document, limit, one_line):
    prompt = SHORT.model_copy(update={"text": "|{text}|", "max_text_chars": limit, "one_line": one_line})
    shown = prompt.render(document)[1:-1]
    assert len(shown) <= limit
    assert "\n" not in shown or not one_line
    if not one_line:
        assert document.startswith(shown)


@pytest.mark.parametrize("name", ["educational_value", "adult_content", "personal_data", "harmful_content"])
def test_the_shipped_patterns_read_markdown_and_take_no_minus_for_a_dash(name):
    pattern = load_prompt(name).pattern
    assert re.findall(pattern, "**Score**: **2**\nScore: 3") == ["2", "3"]
    assert not re.findall(pattern, "Score: -1")
