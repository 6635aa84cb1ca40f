import pytest
from hypothesis import given
from hypothesis import strategies as st
from misbehaving import PROMPT

from ml_filter.annotation.prompts import SLOT, Prompt, load_prompt
from ml_filter.errors import ConfigError

SHORT = Prompt.model_validate(PROMPT)


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
