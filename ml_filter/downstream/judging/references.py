"""ROUGE of an answer against the answer of the data."""

from __future__ import annotations

from functools import cache
from typing import Any

from ml_filter.extras import require_extra


def rouge_scores(reference: str, answer: str) -> dict[str, float]:
    """F1 of ROUGE-1, ROUGE-2 and ROUGE-L (Lin 2004), 0 to 1, without stemming.

    Raises:
        ConfigError: the extra `tune` is not installed.
    """
    return {name: float(score.fmeasure) for name, score in _scorer().score(reference, answer).items()}


@cache
def _scorer() -> Any:
    require_extra("tune", "rouge", "rouge_score")
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rouge1", "rouge2", "rougeL"])
