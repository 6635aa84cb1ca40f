from hypothesis import given
from hypothesis import strategies as st

from ml_filter.heads.batching import length_batches


@given(st.lists(st.integers(1, 512)), st.integers(64, 4096))
def test_every_text_is_in_one_batch_and_no_batch_of_several_is_over_budget(lengths, budget):
    batches = list(length_batches(lengths, budget))
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget


def test_the_longest_come_first():
    assert list(length_batches([5, 100, 50], 100)) == [[1], [2, 0]]
