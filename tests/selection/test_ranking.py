"""The order of the ranking, the external sort and the division of budgets."""

import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_filter.selection.ranking import (
    ORDER,
    RANKED,
    at_or_before,
    external_sort,
    in_proportion,
    rank_of,
    redistributed,
    values_of,
)

KEY = st.tuples(*[st.integers(0, 2)] * (len(ORDER) - 1))


def rows_of(keys: list[tuple[int, ...]]) -> np.ndarray:
    return np.array([(*key, place) for place, key in enumerate(keys)], RANKED)


@settings(deadline=None)
@given(keys=st.lists(KEY, max_size=400), piece_rows=st.sampled_from([1, 3, 50]), added=st.integers(1, 40))
def test_sorted_pieces_of_any_size_merge_into_one_order(keys, piece_rows, added):
    rows = rows_of(keys)
    blocks = (rows[start : start + added] for start in range(0, len(rows), added))
    with tempfile.TemporaryDirectory() as folder:
        merged = [row for block in external_sort(blocks, Path(folder) / "rows", piece_rows) for row in block.tolist()]
    assert merged == sorted(rows.tolist())


@given(a=KEY, b=KEY)
def test_rows_compare_field_by_field(a, b):
    assert at_or_before(rows_of([a]), rows_of([b]))[0] == (a <= b)


@given(a=st.floats(allow_nan=False), b=st.floats(allow_nan=False))
def test_a_higher_value_has_a_lower_rank_and_equal_values_have_equal_ranks(a, b):
    ranks = rank_of(np.array([a, b]))
    first, second = ranks.tolist()
    assert (first < second) == (a > b)
    assert (first == second) == (a == b)
    assert values_of(ranks).tolist() == [a, b]


@given(total=st.integers(0, 10**12), weights=st.lists(st.floats(0, 1e6), max_size=30))
def test_parts_in_proportion_add_up_and_are_less_than_one_away_from_the_exact_parts(total, weights):
    parts = in_proportion(total, np.array(weights))
    exact = np.array(weights) / sum(weights) * total if sum(weights) else np.zeros(len(weights))
    assert parts.sum() == (total if sum(weights) else 0)
    assert (np.abs(parts - exact) < 1 + 1e-6 * max(total, 1) / 1e3).all()


@given(total=st.integers(0, 10**9), parts=st.lists(st.tuples(st.integers(0, 10**7), st.integers(0, 5)), max_size=30))
def test_what_one_part_cannot_use_goes_to_the_others_in_proportion(total, parts):
    available = np.array([part for part, _ in parts], dtype=np.int64)
    weights = np.array([weight for _, weight in parts], dtype=np.float64)
    budget = redistributed(total, available, weights)
    is_weighted = weights > 0
    assert (budget <= available + 1).all()
    assert (budget[~is_weighted] == 0).all()
    assert budget.sum() == min(total, available[is_weighted].sum())
    is_limited = is_weighted & (budget < available)
    if is_limited.any():
        per_weight = (budget[is_limited] / weights[is_limited]).max()
        assert (budget[is_weighted] / weights[is_weighted]).max() <= per_weight + 2
