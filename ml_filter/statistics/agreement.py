"""How well raters agree, with bootstrap intervals over documents.

The figures themselves come from libraries where one computes them (`_LIBRARY`). The intervals come from the same
statistics written for weights: drawing documents with replacement is drawing how often each distinct row of ratings
occurs (multinomially), so a thousand resamples are a few matrix products, whatever the number of documents. The tests
hold both against each other.

Nominal and ordinal figures need classes: scores rounded, halves upwards, clamped to the score range where it is known.

Sources: Cohen 1960, 1968 (kappa, weighted kappa); Fleiss 1971; Krippendorff, Computing Krippendorff's
Alpha-Reliability, 2011; Shrout and Fleiss 1979 (ICC); Kendall 1945 (tau-b).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from ml_filter.statistics.evaluation import integer_scores

Array = NDArray[np.float64]
Statistic = Callable[[Array, Array], dict[str, Array]]
"""From U distinct rows [U, ...] and how often each occurs in B resamples [B, U] to figures [B], nan: undefined."""

ROUNDING_VARIANCE = 1 / 12
"""Variance of the error of an answer that was rounded to a whole score; the least spread that votes are taken for."""
MIN_DOCUMENTS = 3
"""Fewer documents give no figure: two always correlate perfectly."""
MIN_FOR_INTERVAL = 10
"""Resamples of fewer documents say little: three that agree would give an interval of no width."""
MAX_CLASSES = 21
"""More classes than a scale from 0 to 20 has are not tabulated."""
_KENDALL_ROWS, _KENDALL_RESAMPLES = 1000, 200
"""Above so many distinct pairs of scores, Kendall's tau-b is resampled by scipy, and less often."""
_CHUNK = 2_000_000
_TINY = 1e-12
"""A variance below this share of the squares is rounding."""
_TOO_MANY_CLASSES = f"scores span more than {MAX_CLASSES} whole numbers"


class Figure(BaseModel):
    """A figure with its interval, and the documents behind it. Where value or low are None, `reason` says why."""

    value: float | None
    low: float | None = None
    high: float | None = None
    documents: int
    resamples: int = 0
    reason: str | None = None


class ClassAgreement(BaseModel):
    """One class: precision, recall and F1 of the rater against the reference, and how often each gave it."""

    precision: Figure
    recall: Figure
    f1: Figure
    reference: int
    rater: int


class PairAgreement(BaseModel):
    """A rater against a reference, over the documents that both scored."""

    reference: str
    rater: str
    documents: int
    figures: dict[str, Figure]
    classes: dict[int, ClassAgreement]
    confusion: list[list[int]]
    """Documents by class of the reference (rows) and of the rater (columns), in the order of `classes`."""


class GroupAgreement(BaseModel):
    """Several raters at once. Fleiss' kappa and ICC use the documents that all of them scored."""

    raters: list[str]
    figures: dict[str, Figure]


class Resampling(BaseModel):
    """How intervals are made: share of the resamples inside, number of resamples, seed, and the share of the resamples
    in which a figure has to be defined."""

    confidence: float = 0.95
    resamples: int = 1000
    seed: int = 0
    defined: float = 0.5


# --- Two raters ------------------------------------------------------------------------------------------------------


def compare_pair(
    reference: str,
    rater: str,
    scores: Array,
    *,
    score_range: tuple[float, float] | None,
    threshold: float,
    how: Resampling,
) -> PairAgreement:
    """All figures of two raters from their scores [documents, 2], the reference first; nan: no score."""
    both = scores[np.isfinite(scores).all(axis=1)]
    classes = to_classes(both, score_range)
    figures: dict[str, Figure] = {}
    if len(both) < MIN_DOCUMENTS:
        figures = dict.fromkeys(PAIR_FIGURES, too_few(len(both)))
        return PairAgreement(
            reference=reference, rater=rater, documents=len(both), figures=figures, classes={}, confusion=[]
        )
    figures |= resampled_figures(both, rank_and_distance, how)
    if len(np.unique(both, axis=0)) <= _KENDALL_ROWS:
        figures |= resampled_figures(both, _kendall, how)
    else:
        few = how.model_copy(update={"resamples": min(how.resamples, _KENDALL_RESAMPLES)})
        figures |= resampled_figures(both, _kendall_by_scipy, few)
    good = (classes >= threshold).astype(np.float64)
    figures |= resampled_figures(good, at_threshold, how, shares_at_threshold(good))
    span = np.arange(classes.min(), classes.max() + 1)
    if len(span) > MAX_CLASSES:
        undefined = Figure(value=None, documents=len(both), reason=_TOO_MANY_CLASSES)
        figures |= dict.fromkeys(_TABLE_FIGURES, undefined)
        present, confusion = np.array([]), np.zeros((0, 0), dtype=np.int64)
    else:
        figures |= resampled_figures(classes, table_statistic(span), how, _shares_by_class(classes, span))
        present = np.unique(classes)
        confusion = np.zeros((len(present), len(present)), dtype=np.int64)
        np.add.at(confusion, tuple(np.searchsorted(present, classes).T), 1)
    return PairAgreement(
        reference=reference,
        rater=rater,
        documents=len(both),
        figures={name: figures[name] for name in PAIR_FIGURES},
        classes={
            int(name): ClassAgreement(
                precision=figures[f"precision@{int(name)}"],
                recall=figures[f"recall@{int(name)}"],
                f1=figures[f"f1@{int(name)}"],
                reference=int((classes[:, 0] == name).sum()),
                rater=int((classes[:, 1] == name).sum()),
            )
            for name in present
        },
        confusion=confusion.tolist(),
    )


def compare_against(
    scores: Array, *, score_range: tuple[float, float] | None, threshold: float, how: Resampling
) -> dict[str, Figure]:
    """By how much a second rater's figures against a reference exceed a first one's.

    The interval is paired: both figures come from the same resamples, so that it is narrower than the two figures'
    own intervals let expect where the raters err alike.

    Args:
        scores: [documents, 3], the reference, the first and the second rater; nan: no score. Documents that all three
            scored count.
        score_range: lowest and highest score, where it is known.
        threshold: a rounded score at or above counts as good.
        how: of the resampling.
    """
    rows = scores[np.isfinite(scores).all(axis=1)]
    if len(rows) < MIN_DOCUMENTS:
        return dict.fromkeys(COMPARED_FIGURES, too_few(len(rows)))
    classes = to_classes(rows, score_range)
    span = np.arange(classes.min(), classes.max() + 1)
    figures: dict[str, Figure] = {}
    figures |= resampled_figures(rows, _difference_of(rank_and_distance), how)
    figures |= resampled_figures((classes >= threshold).astype(np.float64), _difference_of(at_threshold), how)
    if len(span) > MAX_CLASSES:
        figures |= dict.fromkeys(
            (f"difference_{name}" for name in _TABLE_FIGURES),
            Figure(value=None, documents=len(rows), reason=_TOO_MANY_CLASSES),
        )
    else:
        figures |= resampled_figures(classes, _difference_of(table_statistic(span)), how)
    return {name: figures[f"difference_{name}"] for name in COMPARED_FIGURES}


def _difference_of(statistic: Statistic) -> Statistic:
    def of_rater(column: int, rows: Array, weights: Array) -> dict[str, Array]:
        pairs, places = np.unique(rows[:, [0, column]], axis=0, return_inverse=True)
        together = np.zeros((len(pairs), len(weights)))
        np.add.at(together, places, weights.T)
        return statistic(pairs, together.T)

    def difference(rows: Array, weights: Array) -> dict[str, Array]:
        first, second = of_rater(1, rows, weights), of_rater(2, rows, weights)
        return {f"difference_{name}": second[name] - first[name] for name in first}

    return difference


def rank_and_distance(rows: Array, weights: Array) -> dict[str, Array]:
    """Statistic of distinct rows (reference, rater): correlations, errors and the mean difference."""
    x, y = rows[:, 0], rows[:, 1]
    n = weights.sum(axis=1)
    return {
        "spearman": _correlation(_ranks(x, weights), _ranks(y, weights), weights),
        "pearson": _correlation(x[None] - x.mean(), y[None] - y.mean(), weights),
        "mae": weights @ np.abs(y - x) / n,
        "mse": weights @ (y - x) ** 2 / n,
        "mean_difference": weights @ (y - x) / n,
    }


def _ranks(values: Array, weights: Array) -> Array:
    """Ranks [B, U] counted from the middle, ties sharing their mean rank, where row u occurs weights[b, u] times."""
    order = np.argsort(values, kind="stable")
    starts = np.flatnonzero(np.diff(values[order], prepend=-np.inf))
    groups = np.add.reduceat(weights[:, order], starts, axis=1)
    middle = np.cumsum(groups, axis=1) - groups / 2 - weights.sum(axis=1, keepdims=True) / 2
    group_of = np.empty(len(values), dtype=np.intp)
    group_of[order] = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(values)))
    ranks: Array = middle[:, group_of]
    return ranks


def _correlation(x: Array, y: Array, weights: Array) -> Array:
    n = weights.sum(axis=1)
    sx, sy = (weights * x).sum(axis=1), (weights * y).sum(axis=1)
    xx, yy = (weights * x * x).sum(axis=1), (weights * y * y).sum(axis=1)
    vx, vy = xx - sx * sx / n, yy - sy * sy / n
    constant = (vx <= _TINY * xx) | (vy <= _TINY * yy)
    return divide((weights * x * y).sum(axis=1) - sx * sy / n, np.sqrt(np.where(constant, 0, vx * vy)))


def _kendall(rows: Array, weights: Array) -> dict[str, Array]:
    sx, sy = (np.sign(rows[:, None, k] - rows[None, :, k]) for k in (0, 1))
    agree, untied_x, untied_y = (((weights @ s) * weights).sum(axis=1) for s in (sx * sy, np.abs(sx), np.abs(sy)))
    return {"kendall": divide(agree, np.sqrt(untied_x * untied_y))}


def _kendall_by_scipy(rows: Array, weights: Array) -> dict[str, Array]:
    from scipy.stats import kendalltau

    drawn = (np.repeat(rows, one.astype(np.int64), axis=0) for one in weights)
    return {"kendall": np.array([kendalltau(pairs[:, 0], pairs[:, 1]).statistic for pairs in drawn])}


def at_threshold(rows: Array, weights: Array) -> dict[str, Array]:
    """Statistic of rows (reference, rater) of 1 for good and 0: the figures of a decision."""
    wanted, given = rows[:, 0], rows[:, 1]
    hits, n_wanted, n_given = weights @ (wanted * given), weights @ wanted, weights @ given
    n, rightly_out = weights.sum(axis=1), weights @ ((1 - wanted) * (1 - given))
    f1 = np.stack([divide(2 * hits, n_wanted + n_given), divide(2 * rightly_out, 2 * n - n_wanted - n_given)])
    return {
        "agreement_at_threshold": weights @ (wanted == given) / n,
        "precision_at_threshold": divide(hits, n_given),
        "recall_at_threshold": divide(hits, n_wanted),
        "f1_at_threshold": f1[0],
        "macro_f1_at_threshold": np.nansum(f1, axis=0) / np.isfinite(f1).sum(axis=0),
    }


def shares_at_threshold(rows: Array) -> dict[str, int]:
    """How many of the rows each figure of a decision is a share of, where it is one."""
    wanted, given = rows.sum(axis=0).astype(int).tolist()
    named = {"agreement": len(rows), "precision": given, "recall": wanted, "f1": int(rows.any(axis=1).sum())}
    return {f"{name}_at_threshold": count for name, count in named.items()}


def _shares_by_class(classes: Array, span: Array) -> dict[str, int]:
    shares = {"exact_agreement": len(classes)}
    for k in span:
        of_class = shares_at_threshold((classes == k).astype(np.float64))
        for name in ("precision", "recall", "f1"):
            shares[f"{name}@{int(k)}"] = of_class[f"{name}_at_threshold"]
    return shares


def table_statistic(span: Array) -> Statistic:
    """Statistic of distinct rows (reference, rater) of classes: the figures of their table.

    `span` are the whole numbers from the lowest class to the highest.
    """
    size = len(span)
    distance = np.abs(span[:, None] - span[None, :])
    penalties = {"kappa": (distance > 0).astype(np.float64), "kappa_linear": distance, "kappa_quadratic": distance**2}

    def statistic(rows: Array, weights: Array) -> dict[str, Array]:
        cells = ((rows[:, 0] - span[0]) * size + rows[:, 1] - span[0]).astype(np.intp)
        flat = np.zeros((len(weights), size * size))
        flat[:, cells] = weights  # rows are distinct, so are cells
        table = flat.reshape(-1, size, size)
        n, wanted, given = table.sum(axis=(1, 2)), table.sum(axis=2), table.sum(axis=1)
        chance = wanted[:, :, None] * given[:, None, :] / n[:, None, None]
        made = {
            name: 1 - divide((table * penalty).sum(axis=(1, 2)), (chance * penalty).sum(axis=(1, 2)))
            for name, penalty in penalties.items()
        }
        hits = np.diagonal(table, axis1=1, axis2=2)
        precision, recall, f1 = divide(hits, given), divide(hits, wanted), divide(2 * hits, wanted + given)
        made["exact_agreement"] = hits.sum(axis=1) / n
        made["macro_f1"] = np.nansum(f1, axis=1) / np.isfinite(f1).sum(axis=1)
        for k, name in enumerate(span.astype(int)):
            made |= {f"precision@{name}": precision[:, k], f"recall@{name}": recall[:, k], f"f1@{name}": f1[:, k]}
        return made

    return statistic


# --- Any number of raters --------------------------------------------------------------------------------------------


def compare_group(
    raters: list[str], scores: Array, *, score_range: tuple[float, float] | None, how: Resampling
) -> GroupAgreement:
    """Fleiss' kappa, Krippendorff's alpha and ICC of scores [documents, raters]; nan: no score."""
    rated_twice = scores[np.isfinite(scores).sum(axis=1) >= 2]
    complete = np.isfinite(rated_twice).all(axis=1)
    if len(rated_twice) < MIN_DOCUMENTS:
        return GroupAgreement(raters=raters, figures=dict.fromkeys(GROUP_FIGURES, too_few(len(rated_twice))))
    figures = dict.fromkeys(GROUP_FIGURES, too_few(int(complete.sum())))
    figures |= resampled_figures(rated_twice, _alpha_interval, how)
    if complete.sum() >= MIN_DOCUMENTS:
        figures |= resampled_figures(rated_twice[complete], _icc, how)
    classes = to_classes(rated_twice, score_range)
    span = np.arange(np.nanmin(classes), np.nanmax(classes) + 1)
    if len(span) > MAX_CLASSES:
        undefined = Figure(value=None, documents=len(rated_twice), reason=_TOO_MANY_CLASSES)
        figures |= dict.fromkeys(("fleiss_kappa", "alpha_nominal", "alpha_ordinal"), undefined)
    else:
        counts = _class_counts(classes, span)
        figures |= resampled_figures(counts, _alpha_of_classes, how)
        if complete.sum() >= MIN_DOCUMENTS:
            figures |= resampled_figures(counts[complete], _fleiss, how)
    return GroupAgreement(raters=raters, figures=figures)


def _class_counts(classes: Array, span: Array) -> Array:
    """How many raters gave each document each class, [documents, classes]."""
    counts: Array = (classes[:, :, None] == span[None, None, :]).sum(axis=1).astype(np.float64)
    return counts


def _fleiss(counts: Array, weights: Array) -> dict[str, Array]:
    raters = counts[:1].sum(axis=1)
    n = weights.sum(axis=1)
    observed = weights @ ((counts * counts).sum(axis=1) - raters) / (n * raters * (raters - 1))
    shares = weights @ counts / (n * raters)[:, None]
    chance = (shares * shares).sum(axis=1)
    return {"fleiss_kappa": 1 - divide(1 - observed, np.where(chance >= 1 - _TINY, 0, 1 - chance))}


def _alpha_of_classes(counts: Array, weights: Array) -> dict[str, Array]:
    size = counts.shape[1]
    pairs = (counts[:, :, None] * counts[:, None, :] - np.eye(size) * counts[:, :, None]) / (
        counts.sum(axis=1)[:, None, None] - 1
    )
    coincidences = (weights @ pairs.reshape(len(counts), -1)).reshape(-1, size, size)
    totals = coincidences.sum(axis=2)
    n = totals.sum(axis=1)
    middle = np.cumsum(totals, axis=1) - totals / 2
    ordinal = (middle[:, :, None] - middle[:, None, :]) ** 2
    made = {}
    for name, distance in (("alpha_nominal", 1 - np.eye(size)[None]), ("alpha_ordinal", ordinal)):
        observed = (coincidences * distance).sum(axis=(1, 2))
        chance = (totals[:, :, None] * totals[:, None, :] * distance).sum(axis=(1, 2)) / (n - 1)
        made[name] = 1 - divide(observed, chance)
    return made


def _alpha_interval(rows: Array, weights: Array) -> dict[str, Array]:
    # With squared differences, sums over pairs are those of values and of squares.
    values = np.nan_to_num(rows - np.nanmean(rows))
    given = np.isfinite(rows).sum(axis=1)
    sums, squares = values.sum(axis=1), (values * values).sum(axis=1)
    n, total, total_squares = weights @ given, weights @ sums, weights @ squares
    observed = weights @ ((given * squares - sums * sums) / (given - 1)) / n
    chance = (n * total_squares - total * total) / (n * (n - 1))
    return {"alpha_interval": 1 - divide(observed, np.where(chance <= _TINY * total_squares / n, 0, chance))}


def _icc(rows: Array, weights: Array) -> dict[str, Array]:
    # Mean squares of the two-way analysis of variance; names and formulas as in Shrout and Fleiss 1979.
    values = rows - rows.mean()
    n, k = weights.sum(axis=1), rows.shape[1]
    by_document, by_rater = values.sum(axis=1), weights @ values
    squares = weights @ (values * values).sum(axis=1)
    correction = by_rater.sum(axis=1) ** 2 / (n * k)
    total = squares - correction
    documents = weights @ (by_document**2) / k - correction
    raters = (by_rater**2).sum(axis=1) / n - correction
    total, documents, raters = (np.where(s <= _TINY * squares, 0, s) for s in (total, documents, raters))
    residual = total - documents - raters
    residual = np.where(residual <= _TINY * squares, 0, residual)
    bms, wms = documents / (n - 1), (total - documents) / (n * (k - 1))
    jms, ems = raters / (k - 1), residual / ((n - 1) * (k - 1))
    return {
        "icc_1_1": divide(bms - wms, bms + (k - 1) * wms),
        "icc_2_1": divide(bms - ems, bms + (k - 1) * ems + k * (jms - ems) / n),
        "icc_3_1": divide(bms - ems, bms + (k - 1) * ems),
        "icc_1_k": divide(bms - wms, bms),
        "icc_2_k": divide(bms - ems, bms + (jms - ems) / n),
        "icc_3_k": divide(bms - ems, bms),
    }


# --- Shares of one rater ---------------------------------------------------------------------------------------------


def share_failed(scores: Array, failed: NDArray[np.bool_], how: Resampling) -> Figure:
    """The share of the documents a rater was asked about [documents] that got no score."""
    asked = np.isfinite(scores) | failed
    if asked.sum() < MIN_DOCUMENTS:
        return too_few(int(asked.sum()))
    rows = failed[asked][:, None].astype(np.float64)
    return resampled_figures(rows, _mean, how, {"mean": len(rows)})["mean"]


def _mean(rows: Array, weights: Array) -> dict[str, Array]:
    return {"mean": weights @ rows[:, 0] / weights.sum(axis=1)}


# --- Figures and their intervals -------------------------------------------------------------------------------------


def to_classes(scores: Array, score_range: tuple[float, float] | None) -> Array:
    """Whole scores as floats, nan where there is none; clamped only where the range is known."""
    low, high = score_range or (-np.inf, np.inf)
    classes = np.full(scores.shape, np.nan)
    given = np.isfinite(scores)
    classes[given] = integer_scores(scores[given], low, high)
    return classes


def resampled_figures(
    rows: Array, statistic: Statistic, how: Resampling, shares: Mapping[str, int] | None = None
) -> dict[str, Figure]:
    """The statistic of rows [documents, ...] with its percentile bootstrap interval.

    An interval is widened to its figure where the percentiles leave that out (few documents, skewed statistics).
    Resamples in which a figure is undefined are left out; `resamples` counts the others. A share of 0 or 1 is so in
    every resample, however few documents it stands on: the interval of those that `shares` names, with how many
    documents they are shares of, then reaches to the exact bound of Clopper and Pearson (1934).
    """
    documents = len(rows)
    # No score is minus infinity, so that it can stand for nan, which does not equal itself.
    distinct, counts = np.unique(np.where(np.isnan(rows), -np.inf, rows), axis=0, return_counts=True)
    distinct = np.where(np.isinf(distinct), np.nan, distinct)
    whole = statistic(distinct, counts[None].astype(np.float64))
    drawing = _resampled(counts, how) if documents >= MIN_FOR_INTERVAL else ()
    parts = [statistic(distinct, weights) for weights in drawing]
    made = {}
    for name, values in whole.items():
        value = float(values[0])
        if np.isnan(value):
            made[name] = Figure(value=None, documents=documents, reason=_why_undefined(name))
            continue
        if name in _LIBRARY:
            value = float(_LIBRARY[name](rows))
        if documents < MIN_FOR_INTERVAL:
            reason = f"no interval: {documents} documents; at least {MIN_FOR_INTERVAL} are needed"
            made[name] = Figure(value=value, documents=documents, reason=reason)
            continue
        drawn = np.concatenate([part[name] for part in parts])
        drawn = drawn[np.isfinite(drawn)]
        if len(drawn) < how.resamples * how.defined:
            reason = (
                f"no interval: the figure is undefined in {how.resamples - len(drawn)} of {how.resamples} resamples"
            )
            made[name] = Figure(value=value, documents=documents, resamples=len(drawn), reason=reason)
            continue
        low, high = np.quantile(drawn, [(1 - how.confidence) / 2, (1 + how.confidence) / 2])
        share_of = shares.get(name) if shares else None
        if share_of is not None and value in (0, 1):
            # The lowest share of which so many documents are all hits often enough to be within the confidence.
            lowest = float(((1 - how.confidence) / 2) ** (1 / share_of))
            bound = lowest if value else 1 - lowest
            if name.startswith("f1"):  # 2 J / (1 + J), with J the share that both found of what either of them did
                bound = 2 * bound / (1 + bound)
            low, high = min(low, bound), max(high, bound)
        made[name] = Figure(
            value=value,
            low=min(float(low), value),
            high=max(float(high), value),
            documents=documents,
            resamples=len(drawn),
        )
    return made


def too_few(documents: int) -> Figure:
    """No figure, for want of documents."""
    return Figure(value=None, documents=documents, reason=f"{documents} documents; at least {MIN_DOCUMENTS} are needed")


def _resampled(counts: NDArray[np.int64], how: Resampling) -> Iterator[Array]:
    """How often each distinct row occurs in each resample, in chunks [b, U]."""
    random = np.random.default_rng(how.seed)
    total = int(counts.sum())
    step = max(1, _CHUNK // len(counts))
    for first in range(0, how.resamples, step):
        size = min(step, how.resamples - first)
        weights: Array = random.multinomial(total, counts / total, size=size).astype(np.float64)
        yield weights


def divide(a: Array, b: Array) -> Array:
    """a / b, nan where b is 0."""
    quotient: Array = np.divide(a, b, out=np.full(np.broadcast(a, b).shape, np.nan), where=b != 0)
    return quotient


def _why_undefined(name: str) -> str:
    if name in ("spearman", "kendall", "pearson"):
        return "one of the raters gave every document the same score"
    if name.startswith("precision"):
        return "the rater never gave it"
    if name.startswith("recall"):
        return "the reference never gave it"
    if name.startswith("f1"):
        return "neither of the raters ever gave it"
    return "the ratings do not vary"


def _of_sklearn(name: str, **options: Any) -> Callable[[Array], float]:
    def value(rows: Array) -> float:
        import sklearn.metrics

        return float(getattr(sklearn.metrics, name)(rows[:, 0], rows[:, 1], **options))

    return value


def _kappa_of_sklearn(weights: str | None) -> Callable[[Array], float]:
    def value(rows: Array) -> float:
        from sklearn.metrics import cohen_kappa_score

        # All whole numbers, as the weights go by position among the labels.
        labels = np.arange(rows.min(), rows.max() + 1)
        return float(cohen_kappa_score(rows[:, 0], rows[:, 1], labels=labels, weights=weights))

    return value


def _of_scipy(name: str) -> Callable[[Array], float]:
    def value(rows: Array) -> float:
        import scipy.stats

        return float(getattr(scipy.stats, name)(rows[:, 0], rows[:, 1]).statistic)

    return value


def _fleiss_of_statsmodels(counts: Array) -> float:
    from statsmodels.stats.inter_rater import fleiss_kappa  # type: ignore[import-untyped]

    return float(fleiss_kappa(counts))


def _alpha_of_krippendorff(level: Literal["nominal", "ordinal"]) -> Callable[[Array], float]:
    def value(counts: Array) -> float:
        from krippendorff import alpha

        return float(alpha(value_counts=counts.astype(np.int64), level_of_measurement=level))

    return value


_LIBRARY: dict[str, Callable[[Array], float]] = {
    "spearman": _of_scipy("spearmanr"),
    "kendall": _of_scipy("kendalltau"),
    "pearson": _of_scipy("pearsonr"),
    "mae": _of_sklearn("mean_absolute_error"),
    "mse": _of_sklearn("mean_squared_error"),
    "kappa": _kappa_of_sklearn(None),
    "kappa_linear": _kappa_of_sklearn("linear"),
    "kappa_quadratic": _kappa_of_sklearn("quadratic"),
    "exact_agreement": _of_sklearn("accuracy_score"),
    "macro_f1": _of_sklearn("f1_score", average="macro", zero_division=0),
    "agreement_at_threshold": _of_sklearn("accuracy_score"),
    "precision_at_threshold": _of_sklearn("precision_score"),
    "recall_at_threshold": _of_sklearn("recall_score"),
    "f1_at_threshold": _of_sklearn("f1_score"),
    "macro_f1_at_threshold": _of_sklearn("f1_score", average="macro", zero_division=0),
    "fleiss_kappa": _fleiss_of_statsmodels,
    "alpha_nominal": _alpha_of_krippendorff("nominal"),
    "alpha_ordinal": _alpha_of_krippendorff("ordinal"),
}
"""The figures that a library computes. The others have no light one, or (alpha_interval) one that holds a matrix of
all distinct scores in memory."""

_TABLE_FIGURES = ("kappa", "kappa_linear", "kappa_quadratic", "exact_agreement", "macro_f1")
PAIR_FIGURES = {
    "spearman": "Spearman",
    "kendall": "Kendall tau-b",
    "pearson": "Pearson",
    "kappa": "Cohen's kappa",
    "kappa_linear": "Cohen's kappa, linear weights",
    "kappa_quadratic": "Cohen's kappa, quadratic weights",
    "exact_agreement": "exact agreement",
    "macro_f1": "macro-F1",
    "agreement_at_threshold": "agreement at the threshold",
    "precision_at_threshold": "precision at the threshold",
    "recall_at_threshold": "recall at the threshold",
    "f1_at_threshold": "F1 at the threshold",
    "macro_f1_at_threshold": "macro-F1 at the threshold",
    "mae": "mean absolute error",
    "mse": "mean squared error",
    "mean_difference": "mean difference, rater minus reference",
}
COMPARED_FIGURES = {
    "spearman": True,
    "pearson": True,
    "kappa_quadratic": True,
    "exact_agreement": True,
    "macro_f1": True,
    "agreement_at_threshold": True,
    "f1_at_threshold": True,
    "macro_f1_at_threshold": True,
    "mae": False,
    "mse": False,
}
"""The figures of pairs that tell which of two raters is better, and whether more is better."""
GROUP_FIGURES = {
    "fleiss_kappa": "Fleiss' kappa",
    "alpha_nominal": "Krippendorff's alpha, nominal",
    "alpha_ordinal": "Krippendorff's alpha, ordinal",
    "alpha_interval": "Krippendorff's alpha, interval",
    "icc_1_1": "ICC(1,1): one rater, raters differ by document",
    "icc_2_1": "ICC(2,1): one rater, raters drawn at random",
    "icc_3_1": "ICC(3,1): one rater, only these raters",
    "icc_1_k": "ICC(1,k): mean of the raters, raters differ by document",
    "icc_2_k": "ICC(2,k): mean of the raters, raters drawn at random",
    "icc_3_k": "ICC(3,k): mean of the raters, only these raters",
}
