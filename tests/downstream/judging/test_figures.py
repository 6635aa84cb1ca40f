"""What the verdicts of a judge show, and when they show nothing."""

import numpy as np
import pytest

from ml_filter.downstream.judging.figures import SAME, JudgedPair, compare, paired_figures, verdict_of
from ml_filter.statistics.intervals import Resampling

RESAMPLING = Resampling(resamples=200)


def judged(first=0, second=0, tie=0, inconsistent=0, failed=0, same=0, tuned_length=100) -> list[JudgedPair]:
    counts = {"first": first, "second": second, "tie": tie, "inconsistent": inconsistent, "failed": failed, SAME: same}
    return [
        JudgedPair(verdict, 100, tuned_length, opposed=verdict == "inconsistent")
        for verdict, count in counts.items()
        for _ in range(count)
    ]


def test_ties_inconsistent_verdicts_and_equal_answers_count_half_and_failures_not_at_all():
    comparison = compare(judged(first=10, second=20, tie=4, inconsistent=6, failed=5, same=10), 30, 30, RESAMPLING)
    assert comparison.win_rate.value == pytest.approx((20 + 20 / 2) / 50)
    assert comparison.win_rate.documents == 50
    assert comparison.consistency.value == pytest.approx(30 / 36)


def test_a_consistent_judge_that_prefers_the_tuned_model_calls_it_better():
    comparison = compare(judged(first=5, second=45), 50, 50, RESAMPLING)
    verdict, reason = verdict_of(comparison, 0.6, 30)
    assert verdict == "better"
    assert "length-controlled win rate 0.9" in reason
    assert verdict_of(compare(judged(first=45, second=5), 50, 50, RESAMPLING), 0.6, 30)[0] == "worse"
    assert verdict_of(compare(judged(first=25, second=25), 50, 50, RESAMPLING), 0.6, 30)[0] == "no difference shown"


def test_a_judge_that_always_says_a_gets_no_verdict():
    comparison = compare(judged(inconsistent=48), won_a=96, won_b=0, resampling=RESAMPLING)
    assert comparison.won_first.value == 1.0
    assert comparison.won_first.low > 0.9
    verdict, reason = verdict_of(comparison, 0.6, 30)
    assert verdict == "no verdict"
    assert "of 48 pairs with a winner in both orders, 0% have the same one" in reason


def simulated(random, ties: float, right: float, pairs: int) -> list[JudgedPair]:
    """Verdicts of a judge that says tie in a share of the orders, and names the better answer in a share of the others;
    the tuned model is better in half of the pairs."""
    orders = np.where(
        random.random((pairs, 2)) < ties, "tie", np.where(random.random((pairs, 2)) < right, "better", "other")
    )
    named = {"better": ("first", "second"), "other": ("second", "first"), "tie": ("tie", "tie")}
    return [
        JudgedPair(
            named[ab][number % 2] if ab == ba else "inconsistent", 100, 100, opposed={ab, ba} == {"better", "other"}
        )
        for number, (ab, ba) in enumerate(orders.tolist())
    ]


@pytest.mark.parametrize(
    ("ties", "right", "pairs", "least", "most"),
    [
        (0, 0.5, 200, 0, 0.03),
        (0.5, 0.5, 200, 0, 0.05),
        (0.8, 0.5, 200, 0, 0.03),
        (0, 0.5, 30, 0, 0.05),
        (0, 0.8, 200, 0.95, 1),
        (0.2, 0.8, 200, 0.9, 1),
    ],
)
def test_a_judge_that_guesses_gets_no_verdict_and_one_that_is_mostly_right_does(ties, right, pairs, least, most):
    random, few = np.random.default_rng(0), Resampling(resamples=1)
    trials = [verdict_of(compare(simulated(random, ties, right, pairs), 1, 1, few), 0.6, 30)[0] for _ in range(100)]
    assert least <= 1 - trials.count("no verdict") / 100 <= most


def test_a_judge_that_only_says_tie_gets_no_verdict():
    assert verdict_of(compare(judged(tie=70), 0, 0, RESAMPLING), 0.6, 30) == (
        "no verdict",
        "the judge named a winner in both orders for only 0 of 70 pairs, too few to tell whether it is consistent; at "
        "least 10 are required",
    )


def test_few_pairs_get_no_verdict():
    assert verdict_of(compare(judged(second=12), 12, 12, RESAMPLING), 0.6, 30) == (
        "no verdict",
        "only 12 pairs were judged; at least 30 are required",
    )


def test_a_judge_that_only_likes_length_does_not_make_the_longer_model_better():
    random = np.random.default_rng(0)
    gaps = random.normal(80, 100, 400)  # the tuned model mostly writes more
    longer_wins = random.random(400) < 1 / (1 + np.exp(-gaps / 40))
    pairs = [
        JudgedPair("second" if won else "first", 500, 500 + round(gap))
        for gap, won in zip(gaps, longer_wins, strict=True)
    ]
    comparison = compare(pairs, 400, 400, RESAMPLING)
    assert comparison.win_rate.low > 0.6
    assert comparison.won_longer.value > 0.8
    assert comparison.length_controlled.low < 0.5 < comparison.length_controlled.high
    assert verdict_of(comparison, 0.6, 30)[0] == "no difference shown"


def test_models_that_are_right_about_the_same_questions_may_still_differ_on_others():
    change = paired_figures([(1, 1)] * 8 + [(0, 0)] * 4, RESAMPLING)["change"]
    assert (change.value, change.high) == (0, pytest.approx(1 - 0.025 ** (1 / 12)))
    assert change.low == -change.high
    change = paired_figures([(0, 1)] * 12, RESAMPLING)["change"]
    assert (change.value, change.low, change.high) == (1, pytest.approx(0.025 ** (1 / 12)), 1)
    change = paired_figures([(0, 1)] * 6 + [(1, 1)] * 6, RESAMPLING)["change"]
    assert 0 < change.low < change.value == 0.5 < change.high < 1
