"""Whether a head ranks the documents of one source, or only tells sources apart."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from ml_filter.statistics.intervals import MAX_WEIGHTS, Array, Figure, Resampling, divide, resampled_figures


class Discrimination(BaseModel):
    """Pairs of documents in the right order, within sources and across.

    A pair of documents whose whole labels differ is in the right order when the better one scores higher; ties count
    one half. `across_alike` weights the pairs of two sources so that their pairs of labels are as frequent as within
    one source, whose labels vary less. `difference` is `within` minus that. Intervals are over `sources`, the number of
    all sources; `groups` of them have a pair within.
    """

    column: str
    sources: int
    groups: int
    documents: int
    pairs_within: int
    pairs_across: int
    within: Figure
    across: Figure
    across_alike: Figure
    difference: Figure


def discriminate(
    scores: Array, wanted: NDArray[np.int64], sources: NDArray[np.str_], column: str, resampling: Resampling
) -> Discrimination | None:
    """Count correctly ordered pairs within and across sources; None where no document's source is known.

    `scores`, whole labels `wanted` and `sources` ("": not known, left out) are [documents]; `column` says what the
    sources are, such as "host". Whole sources are resampled, as documents of one source are not independent.
    """
    has_source = sources != ""
    scores, wanted = scores[has_source], wanted[has_source]
    names, source_of = np.unique(sources[has_source], return_inverse=True)
    if not len(names):
        return None
    classes = np.unique(wanted)
    right, pairs = np.zeros((2, len(names), len(classes) * (len(classes) - 1) // 2))  # by source and kind of pair
    for source, rows in enumerate(np.split(np.argsort(source_of), np.cumsum(np.bincount(source_of))[:-1])):
        if len(np.unique(wanted[rows])) > 1:
            once = np.ones((1, len(rows)))
            right[source], pairs[source] = (count[0] for count in _pairs(scores[rows], wanted[rows], once, classes))

    def statistic(rows: Array, weights: Array) -> dict[str, Array]:
        parts = np.array_split(weights, -(-weights.shape[0] * len(scores) // MAX_WEIGHTS))
        counts = [_pairs(scores, wanted, part[:, source_of], classes) for part in parts]
        right_anywhere, anywhere = (np.concatenate(count) for count in zip(*counts, strict=True))
        # A source drawn twice is still one source: its copies are not pairs across.
        across_right, across = right_anywhere - weights**2 @ right, anywhere - weights**2 @ pairs
        within_right, within = weights @ right, weights @ pairs
        shares = divide(across_right, across)
        mixture = np.where(np.isnan(shares), 0, within)
        figures = {
            "within": divide(within_right.sum(axis=1), within.sum(axis=1)),
            "across": divide(across_right.sum(axis=1), across.sum(axis=1)),
            "across_alike": divide(np.nansum(mixture * shares, axis=1), mixture.sum(axis=1)),
        }
        return figures | {"difference": figures["within"] - figures["across_alike"]}

    figures = resampled_figures(np.arange(len(names), dtype=np.float64)[:, None], statistic, resampling)
    for figure in figures.values():
        if figure.value is None:
            figure.reason = "there are no such pairs of documents whose labels differ"
        elif figure.reason:
            figure.reason = figure.reason.replace("documents", f"{column}s")
    all_pairs = _pairs(scores, wanted, np.ones((1, len(scores))), classes)[1].sum()
    return Discrimination(
        column=column,
        sources=len(names),
        groups=int((pairs.sum(axis=1) > 0).sum()),
        documents=len(scores),
        pairs_within=int(pairs.sum()),
        pairs_across=int(all_pairs - pairs.sum()),
        **figures,
    )


def _pairs(scores: Array, wanted: NDArray[Any], weights: Array, classes: NDArray[Any]) -> tuple[Array, Array]:
    """Correctly ordered pairs and all pairs, [B, kinds], by kind (the two classes), for weights [B, documents]."""
    order = np.argsort(scores, kind="stable")
    scores, wanted, weights = scores[order], wanted[order], weights[:, order]
    first, last = (np.searchsorted(scores, scores, side=side) for side in ("left", "right"))
    kinds = len(classes) * (len(classes) - 1) // 2
    right, pairs = np.zeros((2, len(weights), kinds))
    kind = 0
    for index, worse in enumerate(classes[:-1]):
        lower = np.cumsum(np.where(wanted == worse, weights, 0), axis=1)
        lower = np.concatenate([np.zeros((len(weights), 1)), lower], axis=1)
        for better in classes[index + 1 :]:
            chosen = wanted == better
            outranked = (lower[:, first[chosen]] + lower[:, last[chosen]]) / 2
            right[:, kind] = (weights[:, chosen] * outranked).sum(axis=1)
            pairs[:, kind] = weights[:, chosen].sum(axis=1) * lower[:, -1]
            kind += 1
    return right, pairs
