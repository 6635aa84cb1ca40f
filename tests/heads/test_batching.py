import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ml_filter.heads.batching import (
    combine_windows,
    length_batches,
    run_in_batches,
    set_text_prefix,
    split_windows,
    token_ids,
)
from ml_filter.heads.config import EMBEDDED_ENCODER
from ml_filter.heads.encoder import load_encoder


@pytest.fixture(scope="module")
def tokenizer():
    return load_encoder(EMBEDDED_ENCODER).tokenizer


@given(st.lists(st.integers(1, 512)), st.integers(64, 4096))
def test_every_text_is_in_one_batch_and_batches_keep_the_budget(lengths, budget):
    batches = list(length_batches(lengths, budget))
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget


def test_the_longest_texts_come_first():
    assert list(length_batches([5, 100, 50], 100)) == [[1], [2, 0]]


@given(st.text(), st.integers(1, 4))
def test_the_windows_of_a_text_are_its_pieces_in_order(tokenizer, text, windows):
    pieces, owners = split_windows([text, "a"], tokenizer, 12, windows)
    assert owners == sorted(owners)
    own = [piece for piece, owner in zip(pieces, owners, strict=True) if owner == 0]
    assert 1 <= len(own) <= windows
    assert "".join(own) in text
    if windows == 1:
        assert own == [text]


def test_every_window_has_room_for_the_prefix(tokenizer):
    tokenizer = copy.deepcopy(tokenizer)
    set_text_prefix(tokenizer, "passage: ")
    text = " ".join(f"w{n}" for n in range(40))
    pieces, _ = split_windows([text], tokenizer, 12, 4)
    assert [len(ids) for ids in token_ids(pieces, tokenizer, 1000)] == [12, 12, 12, 12]


def test_window_scores_are_combined_by_mean_or_maximum():
    scores, owners = np.array([[1.0], [3.0], [5.0]]), np.array([0, 0, 1])
    assert combine_windows(scores, owners, 2, "mean").tolist() == [[2], [5]]
    assert combine_windows(scores, owners, 2, "max").tolist() == [[3], [5]]


def test_batches_are_halved_when_memory_runs_out(tokenizer):
    sizes = []

    def forward(ids, mask):
        sizes.append(len(ids))
        if ids.numel() > 200:
            raise torch.OutOfMemoryError
        return mask.sum(1, keepdim=True)

    texts = ["word " * (1 + n % 20) for n in range(100)]
    outputs = run_in_batches(texts, tokenizer, forward, max_tokens=64, batch_tokens=1000, device=torch.device("cpu"))
    assert outputs[:, 0].tolist() == [1 + n % 20 + 2 for n in range(100)]
    assert sizes.count(max(sizes)) == 1


def test_a_single_text_that_does_not_fit_raises(tokenizer):
    def forward(ids, mask):
        raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        run_in_batches(["a", "b"], tokenizer, forward, max_tokens=8, batch_tokens=64, device=torch.device("cpu"))
