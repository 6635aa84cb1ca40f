import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_filter.selection.measure import rank_of, values_of
from ml_filter.selection.ranking import ORDER, RANKED, SortedPieces, at_or_before

SMALL = st.tuples(*[st.integers(0, 2)] * (len(ORDER) - 1))


def rows_of(keys: list[tuple[int, ...]]) -> np.ndarray:
    return np.array([(*key, place) for place, key in enumerate(keys)], RANKED)


@settings(deadline=None)
@given(keys=st.lists(SMALL, max_size=400), piece=st.sampled_from([1, 3, 50]), sizes=st.integers(1, 40))
def test_pieces_are_merged_into_one_order_whatever_their_size(keys, piece, sizes):
    rows = rows_of(keys)
    with tempfile.TemporaryDirectory() as name, SortedPieces(Path(name) / "pieces", piece) as pieces:
        for start in range(0, len(rows), sizes):
            pieces.add(rows[start : start + sizes])
        merged = [row for block in pieces.merged() for row in block.tolist()]
    assert merged == sorted(rows.tolist())


@given(a=SMALL, b=SMALL)
def test_rows_compare_column_by_column(a, b):
    assert at_or_before(rows_of([a]), rows_of([b]))[0] == (a <= b)


@given(a=st.floats(allow_nan=False), b=st.floats(allow_nan=False))
def test_higher_values_rank_lower_and_equal_ones_alike(a, b):
    ranks = rank_of(np.array([a, b]))
    first, second = ranks.tolist()
    assert (first < second) == (a > b)
    assert (first == second) == (a == b)
    assert values_of(ranks).tolist() == [a, b]
