"""Only the beginning of a long text is tokenised, and the ids are those of the whole text, cut."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from ml_filter.heads.config import EMBEDDED_ENCODER
from ml_filter.heads.encoder import load_encoder
from ml_filter.heads.tokens import _keeps_prefixes, prefix_tokens, set_text_prefix, token_ids, usual_ids

WORDS = ["Water", "boils", "größer", "Вода", "кључа", "水が沸く", "الماء", "पानी", "don't", "3.14", "ﬁn", "😀"]


@pytest.fixture(scope="module")
def tokenizer():
    return load_encoder(EMBEDDED_ENCODER).tokenizer


def byte_pairs(pre_tokenizer):
    """A byte-pair tokenizer, trained on the words."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizer
    made.train_from_iterator(
        WORDS * 3, BpeTrainer(vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    )
    return PreTrainedTokenizerFast(tokenizer_object=made)


@given(st.lists(st.sampled_from([*WORDS, "\n", "  ", "\t"]), max_size=400), st.integers(3, 40))
def test_ids_are_those_of_the_whole_text(tokenizer, words, most):
    texts = [" ".join(words), "".join(words), ""]
    assert token_ids(texts, tokenizer, most) == usual_ids(texts, tokenizer, most)


@given(st.text(max_size=600), st.integers(3, 20))
def test_whatever_the_text(tokenizer, text, most):
    assert token_ids([text], tokenizer, most) == usual_ids([text], tokenizer, most)


@given(st.lists(st.sampled_from([*WORDS, "\n"]), max_size=400), st.integers(6, 40))
def test_a_prefix_is_read_as_if_it_stood_in_the_text(words, most):
    tokenizer = load_encoder(EMBEDDED_ENCODER).tokenizer
    texts = [" ".join(words), ""]
    wanted = token_ids(["passage: " + text for text in texts], tokenizer, most)
    set_text_prefix(tokenizer, "passage: ")
    assert token_ids(texts, tokenizer, most) == usual_ids(texts, tokenizer, most) == wanted
    assert prefix_tokens(tokenizer) == 2


def test_the_embedded_encoders_tokenizer_reads_only_what_it_needs(tokenizer):
    assert _keeps_prefixes(tokenizer)


@pytest.mark.parametrize("add_prefix_space", [False, True])
def test_so_does_one_of_byte_pairs(add_prefix_space):
    tokenizer = byte_pairs(pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space))
    assert _keeps_prefixes(tokenizer)
    texts = [" ".join(np.random.default_rng(seed).choice(WORDS, 300)) for seed in range(5)]
    assert token_ids(texts, tokenizer, 12) == usual_ids(texts, tokenizer, 12)


def test_one_whose_tokens_reach_across_white_space_gets_whole_texts():
    tokenizer = byte_pairs(
        pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(r"\.\s"), "isolated"),
                pre_tokenizers.ByteLevel(use_regex=False, add_prefix_space=False),
            ]
        )
    )
    texts = ["Water boils. " * 40]
    assert token_ids(texts, tokenizer, 12) == usual_ids(texts, tokenizer, 12)


def test_a_text_of_few_tokens_a_character_is_read_further(tokenizer):
    text = "internationalisation " * 400 + "end " * 50
    assert token_ids([text], tokenizer, 500) == usual_ids([text], tokenizer, 500)
    spaces = "a" + " " * 20_000 + "b"
    assert token_ids([spaces], tokenizer, 16) == usual_ids([spaces], tokenizer, 16)
