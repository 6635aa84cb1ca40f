"""Agreement of several raters: published examples, real ratings against a second library, undefined figures."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nltk.metrics.distance import binary_distance, interval_distance

from ml_filter.statistics.agreement import GroupAgreement, compare_group
from ml_filter.statistics.intervals import Resampling
from ml_filter.statistics.metrics import GROUP_FIGURES
from tests.statistics.test_agreement import as_task
from tests.statistics.test_weighted import CLASSES, RATERS

NAN = math.nan
KRIPPENDORFF_2011 = [  # four observers, twelve units; Computing Krippendorff's Alpha-Reliability, section E
    [1, 2, 3, 3, 2, 1, 4, 1, 2, NAN, NAN, NAN],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NAN, 3],
    [NAN, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NAN],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NAN],
]
FLEISS_1971 = [  # 30 patients, 6 psychiatrists: how many gave each of five diagnoses; table 1
    "00060 03003 01401 00006 03030 20400 00402 20310 20040 00006 10050 11040 03300 10050 02031",
    "00501 30012 51000 02040 10203 00006 01050 02013 20040 10041 05010 40002 02040 10500 00006",
]
SHROUT_FLEISS_1979 = [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]]  # table 2


def group(scores) -> GroupAgreement:
    scores = np.asarray(scores, dtype=float)
    names = [f"r{i}" for i in range(scores.shape[1])]
    return compare_group(names, scores, score_range=None, resampling=Resampling(resamples=100))


def values(scores) -> dict[str, float | None]:
    return {name: figure.value for name, figure in group(scores).figures.items()}


def test_example_of_krippendorff():
    figures = group(np.transpose(KRIPPENDORFF_2011)).figures
    assert figures["alpha_nominal"].value == pytest.approx(0.743, abs=5e-4)
    assert figures["alpha_ordinal"].value == pytest.approx(0.815, abs=5e-4)
    assert figures["alpha_interval"].value == pytest.approx(0.849, abs=5e-4)
    assert figures["alpha_nominal"].documents == 11  # the twelfth has one rating, which makes no pair


def test_example_of_fleiss():
    ratings = [[k for k, n in enumerate(map(int, row)) for _ in range(n)] for row in " ".join(FLEISS_1971).split()]
    assert values(ratings)["fleiss_kappa"] == pytest.approx(0.430, abs=5e-4)


def test_example_of_shrout_and_fleiss():
    figures = values(SHROUT_FLEISS_1979)
    published = {"icc_1_1": 0.17, "icc_2_1": 0.29, "icc_3_1": 0.71, "icc_1_k": 0.44, "icc_2_k": 0.62, "icc_3_k": 0.91}
    assert {name: round(figures[name], 2) for name in published} == published


def anova_icc(scores: np.ndarray) -> dict[str, float]:
    """ICC from the mean squares of statsmodels' analysis of variance."""
    from statsmodels.formula.api import ols
    from statsmodels.stats.anova import anova_lm

    n, k = scores.shape
    rows = [{"document": d, "rater": r, "score": scores[d, r]} for d in range(n) for r in range(k)]
    table = anova_lm(ols("score ~ C(document) + C(rater)", pd.DataFrame(rows)).fit())
    bms, jms, ems = table["mean_sq"]
    wms = table["sum_sq"].iloc[1:].sum() / (n * (k - 1))
    return {
        "icc_1_1": (bms - wms) / (bms + (k - 1) * wms),
        "icc_2_1": (bms - ems) / (bms + (k - 1) * ems + k * (jms - ems) / n),
        "icc_3_1": (bms - ems) / (bms + (k - 1) * ems),
        "icc_1_k": (bms - wms) / bms,
        "icc_2_k": (bms - ems) / (bms + (jms - ems) / n),
        "icc_3_k": (bms - ems) / bms,
    }


def ordinal_alpha_by_definition(scores: np.ndarray) -> float:
    """All pairs of ratings within documents against all pairs there are."""
    flat = scores.ravel()
    counts = {c: int((flat == c).sum()) for c in np.unique(flat)}

    def distance(a, b):
        between = sum(n for c, n in counts.items() if min(a, b) <= c <= max(a, b))
        return (between - (counts[a] + counts[b]) / 2) ** 2 if a != b else 0

    observed = sum(distance(a, b) for row in scores for a in row for b in row) / (scores.shape[1] - 1)
    chance = sum(distance(a, b) for a in flat for b in flat) / (len(flat) - 1)
    return 1 - observed / chance


def test_ratings_of_sixty_documents_by_three_people(shared_data):
    lines = (shared_data / "edu_human_ratings_60x3.jsonl").read_text().splitlines()
    scores = np.array([json.loads(line)["scores"] for line in lines])
    nominal, interval = as_task(scores, binary_distance), as_task(scores, interval_distance)
    expected = {
        "fleiss_kappa": nominal.pi(),  # nltk's multi_kappa is that of Davies and Fleiss
        "alpha_nominal": nominal.alpha(),
        "alpha_ordinal": ordinal_alpha_by_definition(scores),
        "alpha_interval": interval.alpha(),
        **anova_icc(scores),
    }
    figures = group(scores).figures
    assert {name: figure.value for name, figure in figures.items()} == pytest.approx(expected, abs=1e-6)
    assert {figure.documents for figure in figures.values()} == {60}
    assert list(figures) == list(GROUP_FIGURES)


@settings(max_examples=12, deadline=None)
@given(RATERS, st.randoms(use_true_random=False))
def test_order_of_raters_does_not_matter(scores, order):
    before = values(scores)
    after = values(scores[:, order.sample(range(scores.shape[1]), scores.shape[1])])
    for name, value in before.items():
        assert value == pytest.approx(after[name]), name
    for figure in group(scores).figures.values():
        assert figure.reason if figure.low is None else figure.low <= figure.value <= figure.high


@settings(max_examples=12, deadline=None)
@given(CLASSES)
def test_rater_agrees_fully_with_its_copies(scores):
    varies = len(np.unique(scores[:, 0])) > 1
    for name, value in values(scores[:, [0, 0, 0]]).items():
        assert value == (pytest.approx(1) if varies else None), name


def test_too_few_documents_have_no_figures():
    assert set(values([[1, 2], [NAN, 4]]).values()) == {None}
    none_rated_by_all = group([[1, 2, NAN], [3, NAN, 3], [NAN, 4, 5], [1, 1, NAN]]).figures
    assert none_rated_by_all["icc_2_1"].reason == "too few documents (0); at least 3 are required"
    assert none_rated_by_all["alpha_nominal"].value is not None


def test_interval_is_widened_to_its_figure_where_resampling_is_biased():
    # Twenty ratings that all differ: a resample repeats some, so chance disagreement, and alpha, can only be lower.
    figure = group([[2 * i, 2 * i + 1] for i in range(10)]).figures["alpha_nominal"]
    assert figure.value == pytest.approx(0)
    assert figure.low < figure.high == figure.value


def test_long_scales_have_only_the_figures_without_classes():
    figures = values(np.random.default_rng(0).uniform(0, 100, (40, 2)))
    assert figures["alpha_ordinal"] is figures["fleiss_kappa"] is None
    assert figures["alpha_interval"] is not None
