"""Exact intervals of a share, against scipy's."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from ml_filter.statistics.intervals import exact_interval, exact_upper_bound


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.floats(0.5, 0.999))
def test_exact_interval_is_the_one_of_a_binomial_test(share, confidence):
    expected = binomtest(*share).proportion_ci(confidence, method="exact")
    assert exact_interval(*share, confidence) == pytest.approx((expected.low, expected.high), abs=1e-9)
    one_sided = binomtest(*share, alternative="less").proportion_ci(confidence, method="exact")
    assert exact_upper_bound(*share, confidence) == pytest.approx(one_sided.high, abs=1e-9)
