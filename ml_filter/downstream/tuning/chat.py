"""Chat templates, and how a conversation becomes tokens of which only the answers count for the loss.

The templates are written from the public definitions of the formats (ChatML, Alpaca, Llama 3, Phi-3, Gemma). They use
only the part of Jinja that llama.cpp understands, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Any, NamedTuple

from loguru import logger

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, str]
"""`role` (system, user or assistant) and `content`; of Alpaca data also `instruction` and `input`."""
IGNORED = -100
"""The label of a token that does not count for the loss."""


class Template(NamedTuple):
    """A chat template in Jinja, and the token that ends a turn; None: that of the tokenizer."""

    jinja: str
    end: str | None


_ALPACA = """\
{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] + '\\n\\n' }}\
{% elif messages[0]['input'] %}{{ 'Below is an instruction that describes a task, paired with an input that provides \
further context. Write a response that appropriately completes the request.\\n\\n' }}\
{% else %}{{ 'Below is an instruction that describes a task. Write a response that appropriately completes the \
request.\\n\\n' }}{% endif %}\
{% for message in messages %}\
{% if message['role'] == 'user' %}\
{{ '### Instruction:\\n' + (message['instruction'] or message['content']) + '\\n\\n' }}\
{% if message['input'] %}{{ '### Input:\\n' + message['input'] + '\\n\\n' }}{% endif %}\
{% elif message['role'] == 'assistant' %}\
{{ '### Response:\\n' + message['content'] + eos_token + '\\n\\n' }}\
{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ '### Response:\\n' }}{% endif %}"""

_GEMMA = """\
{{ '<bos>' }}{% if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'] + '\\n\\n' %}\
{% else %}{% set first = '' %}{% endif %}\
{% for message in messages %}\
{% if message['role'] == 'assistant' %}{{ '<start_of_turn>model\\n' + message['content'] + '<end_of_turn>\\n' }}\
{% elif message['role'] == 'user' %}\
{{ '<start_of_turn>user\\n' + (first if loop.index0 < 2 else '') + message['content'] + '<end_of_turn>\\n' }}\
{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""

TEMPLATES = {
    "chatml": Template(
        "{% for message in messages %}"
        "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
        "<|im_end|>",
    ),
    "alpaca": Template(_ALPACA, None),
    "llama3": Template(
        "{{ '<|begin_of_text|>' }}{% for message in messages %}"
        "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] + '<|eot_id|>' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}",
        "<|eot_id|>",
    ),
    "phi3": Template(
        "{% for message in messages %}{{ '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}",
        "<|end|>",
    ),
    "gemma": Template(_GEMMA, "<end_of_turn>"),
}


def set_template(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Give a tokenizer the chat template of this name, and the token that ends its turns as end of text.

    `model` keeps its own, or is ChatML if it has none. If the vocabulary does not have the token, the template ends
    turns with the tokenizer's own end of text, so that the model learns to stop.
    """
    if name == "model":
        if tokenizer.chat_template:
            return
        name = "chatml"
    template = TEMPLATES[name]
    jinja, end = template.jinja, template.end
    if end is not None and end in tokenizer.get_vocab():
        tokenizer.eos_token = end
    elif end is not None:
        jinja = jinja.replace(end, str(tokenizer.eos_token))
        logger.warning(
            f"The vocabulary of the base does not have {end}, which ends a turn in the template {name}; turns end with "
            f"{tokenizer.eos_token} instead, and the template's other marks are ordinary text"
        )
    tokenizer.chat_template = jinja


class Tokens(NamedTuple):
    """A conversation as ids, and the label of each: the id itself, or IGNORED outside the answers."""

    ids: list[int]
    labels: list[int]

    @property
    def learned(self) -> int:
        """Number of tokens that count for the loss."""
        return sum(label != IGNORED for label in self.labels)

    @property
    def start(self) -> int:
        """The first token that counts for the loss."""
        return next(index for index, label in enumerate(self.labels) if label != IGNORED)


def tokens_of(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], learn_from: int) -> Tokens:
    """The tokens of a conversation; the answers at and after message `learn_from` count for the loss.

    An answer begins where the prompt for it ends, and includes the end of its turn, so that the model learns to stop.
    """
    text = _rendered(tokenizer, messages)
    spans = []
    for number, message in enumerate(messages):
        if number >= learn_from and message["role"] == "assistant":
            prompt = _rendered(tokenizer, messages[:number], add_generation_prompt=True)
            answer = _rendered(tokenizer, messages[: number + 1])
            spans.append((shared_length(text, prompt), shared_length(text, answer)))
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids: list[int] = encoded["input_ids"]
    labels = [
        token if any(start <= first and last <= end for start, end in spans) else IGNORED
        for token, (first, last) in zip(ids, encoded["offset_mapping"], strict=True)
    ]
    return Tokens(ids, labels)


def _rendered(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], **options: Any) -> str:
    return str(tokenizer.apply_chat_template(list(messages), tokenize=False, **options))


def shared_length(a: Sequence[Any], b: Sequence[Any]) -> int:
    """How many items two sequences have in common at their start."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))
