"""Plots of scores: how those of each annotator, file or corpus are distributed, and where annotators differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from pydantic import BaseModel

from ml_filter.agreement.agreement import RaterSummary, rater_summaries
from ml_filter.agreement.config import AgreementConfig
from ml_filter.agreement.ratings import Ratings, read_scores
from ml_filter.documents.manifest import Manifest, Parent, find_manifest
from ml_filter.documents.output_directory import OutputDirectory
from ml_filter.errors import InputError

REPORT_NAME = "plots.html"
BINS_PER_POINT = 4


class CorpusScores(BaseModel):
    """The scores of a corpus in one column: documents by bin, as many bins to a point as `BINS_PER_POINT`."""

    path: str
    column: str
    documents: int
    failed: int
    edges: list[float]
    counts: list[int]


def plot_scores(scores: Sequence[str], config: AgreementConfig, output: str | Path) -> Manifest:
    """Draw the distribution of scores by rater, the differences between raters who scored the same documents, and a
    histogram of each scored or filtered corpus, which is streamed.

    Writes `plots.html` and each plot as .svg.

    Args:
        scores: directories of annotations, aggregated scores, scored or filtered corpora, and files of ratings.
        config: columns, criterion and which score of an annotation; `gold` is one more rater.
        output: directory or URL.

    Raises:
        InputError: an input cannot be read, has no scores, or several criteria are mixed.
    """
    corpora = {path: made for path in scores if (made := find_manifest(path)) and made.kind in ("scored", "filtered")}
    others = [path for path in scores if path not in corpora]
    ratings, parents = read_scores(others, config) if others else (None, [])
    parents += [Parent(path=made.root, digest=made.digest) for made in corpora.values()]
    with OutputDirectory(output, "plots", config, parents) as out:
        if out.manifest:
            return out.manifest
        raters = rater_summaries(ratings) if ratings else []
        histograms = [one for made in corpora.values() for one in corpus_scores(made, config.criterion)]
        _draw(out, ratings, raters, histograms)
        return out.finish(
            [],
            {
                "raters": len(raters),
                "corpora": len(corpora),
                "scored": sum(one.documents for one in raters) + sum(sum(one.counts) for one in histograms),
                "failed": sum(one.failed for one in raters) + sum(one.failed for one in histograms),
            },
        )


def corpus_scores(corpus: Manifest, criterion: str | None) -> list[CorpusScores]:
    """The scores of a scored or filtered corpus: of one criterion, or of each.

    Raises:
        InputError: it has no score of the criterion.
    """
    names = list(dict.fromkeys(name for path in corpus.shard_paths() for name in pq.read_schema(path).names))
    columns = [name for name in names if name == "score" or (name.startswith("score_") and name != "score_status")]
    wanted = [name for name in columns if criterion in (None, name.removeprefix("score_"))]
    if not wanted:
        raise InputError(f"{corpus.root} has no scores of {criterion!r}; it has {', '.join(columns) or 'none'}")
    return [_histogram(corpus, column) for column in wanted]


def _histogram(corpus: Manifest, column: str) -> CorpusScores:
    bins: Counter[int] = Counter()
    documents = 0
    for path in corpus.shard_paths():
        for batch in pq.ParquetFile(path).iter_batches(columns=[column]):
            values = batch.column(0).to_numpy(zero_copy_only=False).astype(np.float64)
            places = np.floor(values[np.isfinite(values)] * BINS_PER_POINT).astype(np.int64)
            bins.update(dict(zip(*(one.tolist() for one in np.unique(places, return_counts=True)), strict=True)))
            documents += len(values)
    first, last = (min(bins), max(bins)) if bins else (0, 0)
    return CorpusScores(
        path=corpus.root,
        column=column,
        documents=documents,
        failed=documents - bins.total(),
        edges=[place / BINS_PER_POINT for place in range(first, last + 2)],
        counts=[bins[place] for place in range(first, last + 1)],
    )


def _draw(
    out: OutputDirectory, ratings: Ratings | None, raters: list[RaterSummary], histograms: list[CorpusScores]
) -> None:
    from ml_filter.agreement.page import difference_plot, distribution_plot
    from ml_filter.rendering.html import render
    from ml_filter.rendering.plots import score_histogram

    plots = {"distribution": distribution_plot(raters)} if raters else {}
    if ratings and (pairs := _pairs_with_common_documents(ratings)):
        plots["differences"] = difference_plot(ratings, pairs)
    for number, one in enumerate(histograms, 1):
        plots[f"corpus-{number}"] = score_histogram(one.edges, one.counts, title=f"{one.path}: {one.column}")
    for name, svg in plots.items():
        out.put_bytes(f"{name}.svg", svg.encode())
    page = render("agreement/templates/plots.html", raters=raters, histograms=histograms, plots=plots)
    out.put_bytes(REPORT_NAME, page.encode())


def _pairs_with_common_documents(ratings: Ratings) -> list[tuple[str, str]]:
    scored = np.isfinite(ratings.values)
    places = combinations(range(len(ratings.raters)), 2)
    return [(ratings.raters[a], ratings.raters[b]) for a, b in places if (scored[:, a] & scored[:, b]).any()]
