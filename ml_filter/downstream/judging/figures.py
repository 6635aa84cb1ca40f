"""What the verdicts of a judge show: win rates, the judge's own biases, and whether it can be trusted at all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from ml_filter.statistics.intervals import (
    MIN_FOR_INTERVAL,
    Array,
    Figure,
    Resampling,
    divide,
    exact_interval,
    mean_figure,
    resampled_figures,
    too_few,
)

MODELS = ("base", "tuned")
SAME = "same"
WORTH = {"second": 1.0, "first": 0.0, "tie": 0.5, "inconsistent": 0.5, SAME: 0.5}
"""What a verdict counts for the tuned model, the second of a pair. A win in only one order counts as a tie, as in
MT-bench (arXiv 2306.05685); equal answers, which no judge has seen, are SAME."""
_CHANCE = 0.5
"""Most consistency of a judge that guesses: 2pq if it names A with the chance p, and B with q = 1 - p."""


class JudgedPair(NamedTuple):
    """A verdict, how long the answers are in characters, and whether the orders have different winners (no ties)."""

    verdict: str
    base_length: int
    tuned_length: int
    opposed: bool = False


class Comparison(BaseModel):
    """The tuned model against its base.

    Attributes:
        verdicts: pairs by verdict of the judge; `second` is the tuned model, `same` are equal answers.
        win_rate: share of the pairs that the tuned model wins, a tie counting half.
        length_controlled: the win rate if both answers were equally long (arXiv 2404.04475).
        consistency: of the pairs with a winner in each order, the share with the same one. Ties do not count: a judge
            that mostly says tie at random often says it twice.
        won_first: share of the wins that went to the answer shown first; 0.5 without a bias for positions.
        won_longer: share of the consistent wins that went to the longer answer.
    """

    verdicts: dict[str, int]
    win_rate: Figure
    length_controlled: Figure
    consistency: Figure
    won_first: Figure
    won_longer: Figure


def compare(pairs: Sequence[JudgedPair], won_a: int, won_b: int, resampling: Resampling) -> Comparison:
    """The figures of judged pairs; equal answers, with the verdict SAME, are ties that no judge has seen."""
    verdicts = Counter(pair.verdict for pair in pairs)
    counted = [pair for pair in pairs if pair.verdict in WORTH]
    worth = np.array([WORTH[pair.verdict] for pair in counted])
    gaps = np.array([pair.tuned_length - pair.base_length for pair in counted], np.float64)
    won, opposed = verdicts["first"] + verdicts["second"], sum(pair.opposed for pair in pairs)
    decided = [pair for pair in pairs if pair.verdict in ("first", "second") and pair.base_length != pair.tuned_length]
    longer = sum((pair.tuned_length > pair.base_length) == (pair.verdict == "second") for pair in decided)
    enough = len(counted) >= MIN_FOR_INTERVAL
    return Comparison(
        verdicts=dict(verdicts.most_common()),
        win_rate=mean_figure(worth, resampling, is_share=True) if enough else too_few(len(counted)),
        length_controlled=_length_controlled(worth, gaps, resampling) if enough else too_few(len(counted)),
        consistency=_share(won, won + opposed, resampling),
        won_first=_share(won_a, won_a + won_b, resampling),
        won_longer=_share(longer, len(decided), resampling),
    )


def paired_figures(values: Sequence[tuple[float, float]], resampling: Resampling) -> dict[str, Figure]:
    """The means `base` and `tuned` of a measure of both models on the same tasks, and their `change`.

    Of right and wrong answers, a change that is the same in every task is so in every resample, too; its interval
    reaches as far as the exact bound on the share of other tasks.
    """
    rows = np.array(values, np.float64)
    if not np.isin(rows, (0, 1)).all():
        return resampled_figures(rows, _means, resampling)
    figures = resampled_figures(rows, _means, resampling, dict.fromkeys(MODELS, len(rows)))
    change = figures["change"]
    if change.interval is not None and change.low == change.high:
        bound = exact_interval(0, len(rows), resampling.confidence)[1]
        low, high = max(-1.0, change.interval[0] - bound), min(1.0, change.interval[0] + bound)
        figures["change"] = change.model_copy(update={"low": low, "high": high})
    return figures


def _means(rows: Array, weights: Array) -> dict[str, Array]:
    base, tuned = (divide(weights @ rows[:, side], weights.sum(axis=1)) for side in range(2))
    return {"base": base, "tuned": tuned, "change": tuned - base}


def verdict_of(comparison: Comparison, min_consistency: float, min_pairs: int) -> tuple[str, str]:
    """`better`, `worse`, `no difference shown` or `no verdict`, and why."""
    judged = sum(count for verdict, count in comparison.verdicts.items() if verdict not in ("failed", SAME))
    if judged < min_pairs:
        return "no verdict", f"only {judged} pairs were judged; at least {min_pairs} are required"
    problem = _distrust(comparison.consistency, judged, min_consistency)
    if problem is not None:
        return "no verdict", problem
    interval = comparison.length_controlled.interval
    if interval is None:
        return "no verdict", f"the win rate is undefined ({comparison.length_controlled.reason})"
    value, low, high = interval
    reason = f"length-controlled win rate {value:.3f}, interval {low:.3f} to {high:.3f}"
    return ("better" if low > 0.5 else "worse" if high < 0.5 else "no difference shown"), reason


def _distrust(consistency: Figure, judged: int, min_consistency: float) -> str | None:
    """Why the verdicts of a judge are not used; None: it can be trusted."""
    pairs = consistency.documents
    if pairs < MIN_FOR_INTERVAL:
        return (
            f"the judge named a winner in both orders for only {pairs} of {judged} pairs, too few to tell whether it "
            f"is consistent; at least {MIN_FOR_INTERVAL} are required"
        )
    value, low, high = consistency.interval or (0.0, 0.0, 0.0)
    if value < min_consistency:
        return (
            f"the judge is inconsistent: of {pairs} pairs with a winner in both orders, {value:.0%} have the same one; "
            f"at least {min_consistency:.0%} are required. Use a larger judge"
        )
    if low <= _CHANCE:
        return (
            f"the judge may be guessing: of {pairs} pairs with a winner in both orders, {value:.0%} have the same one, "
            f"interval {low:.0%} to {high:.0%}; a judge that guesses reaches {_CHANCE:.0%}. Use more tasks, or a "
            "larger judge"
        )
    return None


def _share(count: int, total: int, resampling: Resampling) -> Figure:
    if not total:
        return Figure(value=None, documents=0, reason="no pairs")
    low, high = exact_interval(count, total, resampling.confidence)
    return Figure(value=count / total, low=low, high=high, documents=total)


def _length_controlled(worth: Array, gaps: Array, resampling: Resampling) -> Figure:
    """The win rate at equal length: logistic regression of the verdict on tanh of the standardised gap in length.

    As in AlpacaEval 2, with two models and without the difficulty of tasks. The penalty of scikit-learn's default keeps
    the effect of length finite if it explains every verdict.
    """
    from sklearn.linear_model import LogisticRegression

    spread = gaps.std()
    rows = np.stack([worth, np.tanh(gaps / spread) if spread else np.zeros(len(gaps))], axis=1)

    def at_equal_length(rows: Array, weights: Array) -> dict[str, Array]:
        features = np.concatenate([rows[:, 1:], rows[:, 1:]])
        won = np.repeat([1, 0], len(rows))
        return {"win_rate": np.array([_fit(features, won, rows[:, 0], row) for row in weights])}

    def _fit(features: Array, won: NDArray[np.int64], worth: Array, weights: Array) -> float:
        shares = np.concatenate([weights * worth, weights * (1 - worth)])
        total = shares.sum()
        if min(shares[: len(worth)].sum(), shares[len(worth) :].sum()) < 1e-9:  # one side wins everything
            return float(shares[: len(worth)].sum() / total)
        drawn = shares > 0
        model = LogisticRegression().fit(features[drawn], won[drawn], sample_weight=shares[drawn])
        return float(1 / (1 + np.exp(-model.intercept_[0])))

    return resampled_figures(rows, at_equal_length, resampling, {"win_rate": len(rows)})["win_rate"]
