"""The report of a run: what came in, what was rejected, scored, failed and kept, and what the scores look like."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from heapq import heappush, heapreplace
from typing import TYPE_CHECKING, Any

import fsspec
import numpy as np
import pyarrow.parquet as pq
from pydantic import BaseModel

from ml_filter.documents.lineage import made_by
from ml_filter.documents.manifest import Manifest
from ml_filter.documents.sampling import sampling_key
from ml_filter.heads.info import read_info
from ml_filter.heads.metrics import Evaluation
from ml_filter.heads.train import TrainedHead
from ml_filter.reports.html import render
from ml_filter.reports.plots import score_histogram

if TYPE_CHECKING:
    from numpy.typing import NDArray

BINS_PER_POINT = 4
EXAMPLES = 3
REPORT_NAME = "report.html"
_EXCERPT = 400
_STAGE_NAMES = {"documents": "sample"}


class Example(BaseModel):
    """A document to look at."""

    id: str
    score: float
    excerpt: str


class ScoreSummary(BaseModel):
    """The scores of a corpus: a histogram and, for each integer score, a count and a few random documents."""

    edges: list[float]
    counts: list[int]
    by_score: dict[int, int]
    examples: dict[int, list[Example]]


class Stage(BaseModel):
    """One stage of the run: its name, where its output is, and its counts."""

    name: str
    path: str
    counts: dict[str, int]


class RunReport(BaseModel):
    """All that the page shows, as data."""

    title: str
    stages: list[Stage]
    facts: dict[str, str]
    scores: ScoreSummary
    evaluation: Evaluation | None = None
    min_score: float | None = None

    def to_html(self) -> str:
        """The page."""
        plot = score_histogram(self.scores.edges, self.scores.counts, self.min_score)
        return render("run.html", report=self, plot=plot)


def summarise_scores(scored: Manifest, *, low: float, high: float, seed: int = 0) -> ScoreSummary:
    """Histogram and examples of a scored corpus, in one streaming pass.

    The examples are those of each integer score whose seeded hash is smallest: random, and the same every time.
    """
    edges: NDArray[Any] = np.linspace(low, high, int((high - low) * BINS_PER_POINT) + 1)
    counts = np.zeros(len(edges) - 1, dtype=np.int64)
    by_score: Counter[int] = Counter()
    chosen: dict[int, list[tuple[int, str, float, str]]] = {}
    for path in scored.shard_paths():
        for batch in pq.ParquetFile(path).iter_batches(batch_size=1000, columns=["id", "text", "score", "int_score"]):
            for row in batch.to_pylist():
                if row["score"] is None:
                    continue
                counts[min(int((row["score"] - low) * BINS_PER_POINT), len(counts) - 1)] += 1
                by_score[row["int_score"]] += 1
                heap = chosen.setdefault(row["int_score"], [])
                key = -sampling_key(row["id"], seed)
                if len(heap) < EXAMPLES:
                    heappush(heap, (key, row["id"], row["score"], row["text"][:_EXCERPT]))
                elif key > heap[0][0]:
                    heapreplace(heap, (key, row["id"], row["score"], row["text"][:_EXCERPT]))
    return ScoreSummary(
        edges=[float(edge) for edge in edges],
        counts=[int(count) for count in counts],
        by_score=dict(sorted(by_score.items())),
        examples={
            score: [Example(id=i, score=s, excerpt=t) for _, i, s, t in sorted(heap, reverse=True)]
            for score, heap in sorted(chosen.items())
        },
    )


def write_run_report(
    head: TrainedHead, scored: Manifest, filtered: Manifest, feature: Sequence[Manifest] = ()
) -> tuple[str, str]:
    """Write `report.html` and `report.json` beside the filtered documents.

    Args:
        head: the head that scored.
        scored: the scored corpus.
        filtered: what was kept of it.
        feature: the sample, annotations and aggregated scores, where they belong to the run.

    Returns:
        The path of the page and the page.
    """
    training = head.training
    stages = [
        *(Stage(name=_STAGE_NAMES.get(m.kind, m.kind), path=m.root, counts=m.counts) for m in feature),
        Stage(
            name="head",
            path=head.directory,
            counts={"trained_on": training.train_documents, "tested_on": training.test_documents},
        ),
        *(Stage(name=m.kind, path=m.root, counts=m.counts) for m in (scored, filtered)),
    ]
    facts = {"code version": scored.code_version, "head": head.digest, "scored corpus": scored.digest}
    facts |= made_by(training.lineage)
    criterion = read_info(head.directory).criteria[0]
    low, high = criterion.low, criterion.high
    report = RunReport(
        title=f"Filtered corpus: {filtered.rows:,} of {scored.counts['read']:,} documents kept",
        stages=stages,
        facts=facts,
        scores=summarise_scores(scored, low=low, high=high),
        evaluation=training.evaluation,
        min_score=filtered.config["filter"]["min_score"],
    )
    page = report.to_html()
    fs, root = fsspec.core.url_to_fs(filtered.root)
    fs.pipe_file(f"{root}/{REPORT_NAME}", page.encode())
    fs.pipe_file(f"{root}/report.json", (report.model_dump_json(indent=1) + "\n").encode())
    return filtered.path_of(REPORT_NAME), page
