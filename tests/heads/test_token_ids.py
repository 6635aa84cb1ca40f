"""Only the start of a long text is tokenised; the ids equal those of the whole text, truncated."""

import copy

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from ml_filter.heads.batching import _can_cut, prefix_tokens, set_text_prefix, token_ids, usual_ids
from ml_filter.heads.config import EMBEDDED_ENCODER
from ml_filter.heads.encoder import load_encoder

WORDS = ["Water", "boils", "größer", "Вода", "кључа", "水が沸く", "الماء", "पानी", "don't", "3.14", "ﬁn", "😀"]


@pytest.fixture(scope="module")
def tokenizer():
    return load_encoder(EMBEDDED_ENCODER).tokenizer


@pytest.fixture(scope="module")
def tokenizer_with_prefix(tokenizer):
    tokenizer = copy.deepcopy(tokenizer)
    set_text_prefix(tokenizer, "passage: ")
    return tokenizer


def train_bpe(pre_tokenizer):
    """A byte-pair tokenizer trained on WORDS."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.train_from_iterator(
        WORDS * 3, BpeTrainer(vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@given(st.lists(st.sampled_from([*WORDS, "\n", "  ", "\t"]), max_size=400), st.integers(3, 40))
def test_ids_equal_those_of_the_whole_text(tokenizer, words, max_tokens):
    texts = [" ".join(words), "".join(words), ""]
    assert token_ids(texts, tokenizer, max_tokens) == usual_ids(texts, tokenizer, max_tokens)


@given(st.text(max_size=600), st.integers(3, 20))
def test_ids_equal_those_of_any_text(tokenizer, text, max_tokens):
    assert token_ids([text], tokenizer, max_tokens) == usual_ids([text], tokenizer, max_tokens)


@given(st.lists(st.sampled_from([*WORDS, "\n"]), max_size=400), st.integers(6, 40))
def test_a_prefix_is_tokenised_with_the_text(tokenizer, tokenizer_with_prefix, words, max_tokens):
    texts = [" ".join(words), ""]
    expected = token_ids(["passage: " + text for text in texts], tokenizer, max_tokens)
    assert token_ids(texts, tokenizer_with_prefix, max_tokens) == expected
    assert usual_ids(texts, tokenizer_with_prefix, max_tokens) == expected
    assert prefix_tokens(tokenizer_with_prefix) == 2


def test_the_embedded_encoder_allows_cutting_texts(tokenizer):
    assert _can_cut(tokenizer)


@pytest.mark.parametrize("add_prefix_space", [False, True])
def test_byte_pair_tokenizers_allow_cutting_texts(add_prefix_space):
    tokenizer = train_bpe(pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space))
    assert _can_cut(tokenizer)
    texts = [" ".join(np.random.default_rng(seed).choice(WORDS, 300)) for seed in range(5)]
    assert token_ids(texts, tokenizer, 12) == usual_ids(texts, tokenizer, 12)


def test_texts_are_not_cut_if_tokens_reach_across_white_space():
    tokenizer = train_bpe(
        pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(r"\.\s"), "isolated"),
                pre_tokenizers.ByteLevel(use_regex=False, add_prefix_space=False),
            ]
        )
    )
    texts = ["Water boils. " * 40]
    assert token_ids(texts, tokenizer, 12) == usual_ids(texts, tokenizer, 12)


def test_a_start_with_too_few_tokens_is_extended(tokenizer):
    text = "internationalisation " * 400 + "end " * 50
    assert token_ids([text], tokenizer, 500) == usual_ids([text], tokenizer, 500)
    spaces = "a" + " " * 20_000 + "b"
    assert token_ids([spaces], tokenizer, 16) == usual_ids([spaces], tokenizer, 16)
