# ruff: noqa: RUF001
import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml_filter.prepare.split import assign_splits, group_documents, host_of, name_keys

SHARES = [0.8, 0.1, 0.1]


def splits(groups: list[int], classes: list[int] | None = None, seed: int = 0, shares=SHARES) -> list[int]:
    order = np.random.default_rng(seed).integers(2**63, size=len(groups), dtype=np.uint64)
    classes = classes or [0] * len(groups)
    return assign_splits(np.array(groups, dtype=np.int64), np.array(classes), order, shares).tolist()


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://www.Example.org:8080/a?b#c", "example.org"),
        ("http://en.example.org/", "en.example.org"),
        ("https://пример.срб/страна", "пример.срб"),
        ("example.org/without/scheme", None),
        ("http://[broken", None),
        ("", None),
        (None, None),
        (7, None),
    ],
)
def test_the_host_of_a_url(url, host):
    assert host_of(url) == host


def test_equal_names_share_a_key_and_missing_names_do_not():
    a, b, none, c, none_too = name_keys(["a", "b", None, "a", None], 0).tolist()
    assert a == c
    assert len({a, b, none, none_too}) == 4
    assert name_keys([None], 2).tolist() == [none]


GROUPS = st.lists(st.integers(0, 9), min_size=1, max_size=60)


@given(
    groups=GROUPS, data=st.data(), seed=st.integers(0, 5), shares=st.sampled_from([SHARES, [0.5, 0.5, 0], [1, 0, 0]])
)
def test_groups_stay_together_and_splits_have_about_their_share(groups, data, seed, shares):
    classes = data.draw(st.lists(st.integers(0, 2), min_size=len(groups), max_size=len(groups)))
    result = splits(groups, classes, seed, shares)
    assert len({(group, split) for group, split in zip(groups, result, strict=True)}) == len(set(groups))
    largest = max(groups.count(group) for group in groups)
    for split, share in enumerate(shares):
        assert result.count(split) <= share * len(groups) + largest + len(set(classes))
        assert share or not result.count(split)


@given(groups=GROUPS, shuffle=st.randoms())
def test_the_split_does_not_depend_on_the_order_of_the_documents(groups, shuffle):
    order = np.random.default_rng(1).integers(2**63, size=len(groups), dtype=np.uint64)
    classes = np.array(groups) % 3
    mixed = list(range(len(groups)))
    shuffle.shuffle(mixed)
    plain = assign_splits(np.array(groups), classes, order, SHARES)
    again = assign_splits(np.array(groups)[mixed], classes[mixed], order[mixed], SHARES)
    assert again.tolist() == plain[mixed].tolist()


def test_single_documents_are_split_exactly_in_every_class():
    classes = [0] * 700 + [1] * 200 + [2] * 100
    result = np.array(splits(list(range(1000)), classes))
    table = np.zeros((3, 3), dtype=int)
    np.add.at(table, (np.array(classes), result), 1)
    assert table.tolist() == [[560, 70, 70], [160, 20, 20], [80, 10, 10]]


@given(groups=GROUPS, data=st.data(), seed=st.integers(0, 5))
def test_groups_stay_together_whatever_the_classes_of_their_documents(groups, data, seed):
    rows = st.lists(st.sampled_from([0.0, 1.0, 2.0, math.nan]), min_size=len(groups), max_size=len(groups))
    one, other = (np.array(data.draw(rows)) for _ in range(2))
    order = np.random.default_rng(seed).integers(2**63, size=len(groups), dtype=np.uint64)
    result = assign_splits(np.array(groups), np.column_stack([one, other]), order, SHARES).tolist()
    assert len(set(zip(groups, result, strict=True))) == len(set(groups))
    assert set(result) <= {0, 1, 2}


def test_single_documents_are_split_evenly_in_the_classes_of_each_criterion():
    random = np.random.default_rng(0)
    classes = np.column_stack([random.integers(0, 6, 1000), random.integers(0, 2, 1000), random.integers(0, 9, 1000)])
    order = random.integers(2**63, size=1000, dtype=np.uint64)
    result = assign_splits(np.arange(1000), classes, order, SHARES)
    assert np.bincount(result) == pytest.approx([800, 100, 100], abs=3)
    for column in classes.T:
        for value in np.unique(column):
            of_class = column == value
            shares = np.bincount(result[of_class], minlength=3) / of_class.sum()
            assert shares == pytest.approx(SHARES, abs=0.03)


def test_the_seed_decides_the_split_and_every_document_can_be_tested():
    assert splits(list(range(100)), seed=1) != splits(list(range(100)), seed=2)
    tested = {i for seed in range(200) for i, split in enumerate(splits(list(range(20)), seed=seed)) if split == 2}
    assert tested == set(range(20))


def test_a_group_too_large_for_the_small_splits_goes_to_train():
    result = splits([0] * 30 + list(range(1, 71)))
    assert set(result[:30]) == {0}
    assert [result.count(split) for split in range(3)] == [80, 10, 10]


@given(rows=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=15))
def test_documents_with_a_common_key_are_one_group(rows):
    keys = np.array([[a, 100 + b] for a, b in rows], dtype=np.uint64).reshape(-1, 2)
    groups = group_documents(keys).tolist()
    for i, (a, b) in enumerate(rows):
        for j, (c, d) in enumerate(rows):
            assert (a != c and b != d) or groups[i] == groups[j]
    random.Random(0).shuffle(rows)
    assert len(set(groups)) == len(set(group_documents(keys[::-1].copy()).tolist()))
