"""Correctly ordered pairs within and across sources: against counting pairs, and of heads that know only sources."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_filter.statistics.intervals import Resampling
from ml_filter.statistics.quality import discriminate
from tests.statistics.test_quality import FEW, SMALL, measure


def count_pairs(scores, wanted, sources):
    """Right and all pairs by (same source, worse label, better label)."""
    counted = {}
    for i in range(len(scores)):
        for j in range(len(scores)):
            if wanted[i] < wanted[j]:
                key = (sources[i] == sources[j], wanted[i], wanted[j])
                right, pairs = counted.get(key, (0, 0))
                counted[key] = right + (scores[i] < scores[j]) + (scores[i] == scores[j]) / 2, pairs + 1
    return counted


@settings(max_examples=60, deadline=None)
@given(SMALL, st.integers(1, 6), st.integers(0, 1000))
def test_pairs_equal_counting_them_one_by_one(documents, how_many, seed):
    scores, labels = map(np.array, documents)
    wanted = labels.astype(int)
    sources = np.random.default_rng(seed).integers(0, how_many, len(scores)).astype(str)
    result = discriminate(scores, wanted, sources, "host", FEW)
    counted = count_pairs(scores, wanted, sources)
    within = {key[1:]: counts for key, counts in counted.items() if key[0]}
    across = {key[1:]: counts for key, counts in counted.items() if not key[0]}

    def share(counts):
        pairs = sum(pairs for _, pairs in counts.values())
        return sum(right for right, _ in counts.values()) / pairs if pairs else None

    assert result.pairs_within == sum(pairs for _, pairs in within.values())
    assert result.pairs_across == sum(pairs for _, pairs in across.values())
    assert result.sources == len(set(sources))
    for figure, expected in ((result.within, share(within)), (result.across, share(across))):
        assert figure.value == (None if expected is None else pytest.approx(expected))
    both = {key: n for key, (_, n) in within.items() if key in across}
    if both:
        alike = sum(n * across[key][0] / across[key][1] for key, n in both.items()) / sum(both.values())
        assert result.across_alike.value == pytest.approx(alike)
        assert result.difference.value == pytest.approx(share(within) - alike)
    else:
        assert result.across_alike.value is None


def hosts(n_hosts=60, pages=6, seed=0):
    """Hosts of different quality: labels vary among the pages of one, and more so from host to host."""
    random = np.random.default_rng(seed)
    host = np.repeat(np.arange(n_hosts), pages)
    level = random.uniform(0, 4, n_hosts)[host]
    labels = np.clip(np.round(level + random.normal(0, 1, len(host))), 0, 5).astype(int)
    return host.astype(str), level, labels


def test_head_that_knows_only_hosts_orders_their_pages_by_chance():
    host, level, labels = hosts()
    result = discriminate(level, labels, host, "host", Resampling(resamples=300))
    assert result.within.value == 0.5
    assert result.across_alike.low > 0.6
    assert result.difference.high < -0.1


def test_head_that_reads_pages_orders_them_within_hosts_as_well_as_across():
    host, _, labels = hosts()
    scores = labels + np.random.default_rng(1).normal(0, 1, len(labels))
    result = discriminate(scores, labels, host, "host", Resampling(resamples=300))
    assert result.within.low > 0.7
    assert result.across.value > result.across_alike.value  # across hosts labels are wider apart, which is easier
    assert result.difference.low < 0 < result.difference.high
    varied = sum(len(set(labels[host == name])) > 1 for name in set(host))
    assert (result.groups, result.sources, result.documents) == (varied, 60, 360)


def test_sources_of_one_document_each_have_no_pairs_within():
    result = discriminate(np.arange(3.0), np.arange(3), np.array(["a", "b", "c"]), "host", FEW)
    assert result.within.value is None
    assert result.within.reason == "no such pairs of documents have different labels"
    assert (result.across.value, result.across.reason) == (
        1.0,
        "no interval: too few hosts (3); at least 10 are required",
    )


def test_unknown_sources_are_ignored():
    host, level, labels = hosts()
    scores = np.append(level, [0.0, 5.0])
    more_labels = np.append(labels, [5, 0])
    result = measure(scores, more_labels.astype(float), source=("host", [*host.tolist(), None, None])).discrimination
    assert result == discriminate(level, labels, host, "host", FEW)
    assert measure(scores, more_labels.astype(float), source=("host", [None] * len(scores))).discrimination is None
