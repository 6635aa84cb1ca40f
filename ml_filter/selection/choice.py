"""Which documents are kept: those that reach a minimum score, or the best, up to a fraction or a budget of tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from loguru import logger
from numpy.typing import NDArray

from ml_filter.documents.manifest import PROGRESS_NAME
from ml_filter.documents.output_directory import OutputDirectory
from ml_filter.documents.readers import InputShard
from ml_filter.progress import progress
from ml_filter.selection.config import QuotaConfig
from ml_filter.selection.corpus import Corpus
from ml_filter.selection.measure import Measure
from ml_filter.selection.quota import Cells, Totals, named_values
from ml_filter.selection.ranking import Measurements, SortedPieces, ranked

QUOTA_NAME = "quota.parquet"
"""Beside the shards: a row for each value of the quota's columns."""
_CUT_NAME = f"{PROGRESS_NAME}/cut.parquet"
Verdict = tuple[NDArray[np.uint8], NDArray[np.uint64]]
"""Of each document of a table: the place of its reason, 0 where it is kept, and its tokens."""
Judge = Callable[[int, pa.Table], Verdict]
"""Asked with the number of a table's first row within its shard, and the table."""


class Choice(Protocol):
    """Which documents are kept, and the reasons why others are not."""

    @property
    def reasons(self) -> Sequence[str]:
        """The reasons; the first stands for being kept."""

    def of(self, number: int, shard: InputShard) -> AbstractContextManager[Judge]:
        """The judge of a shard, that is number `number` of the corpus."""

    def finish(self, out: OutputDirectory) -> dict[str, Any]:
        """What the manifest says of the choice; writes what stands beside it."""


class AtLeast:
    """Documents that reach the minimum score."""

    def __init__(self, measure: Measure) -> None:
        self.measure, self.reasons = measure, measure.reasons

    @contextmanager
    def of(self, number: int, shard: InputShard) -> Iterator[Judge]:
        """The judge of a shard."""

        def judge(first: int, table: pa.Table) -> Verdict:
            measured, _ = self.measure(table, shard.uri)
            return measured["reason"], measured["tokens"]

        yield judge

    def finish(self, out: OutputDirectory) -> dict[str, Any]:
        """What the manifest says of the choice."""
        return {"threshold": self.measure.config.min_score}


class Best:
    """The best documents, up to a fraction or a budget.

    Where the ranking is cut is found once and kept with the unfinished output, so that a run that goes on takes it
    from there.
    """

    def __init__(self, out: OutputDirectory, corpus: Corpus, measure: Measure) -> None:
        self.measure = measure
        self._by_tokens = measure.config.token_budget is not None
        self._over, self._no_quota = len(measure.reasons), len(measure.reasons) + 1
        self.reasons = [*measure.reasons, "over_budget" if self._by_tokens else "over_fraction"]
        self.reasons += ["no_quota"] if measure.config.quota and measure.config.quota.named else []
        self._measurements = Measurements(out.scratch, corpus, measure)
        cut = f"{out.root}/{_CUT_NAME}"
        if out.fs.exists(cut):
            self.cells = Cells.from_bytes(out.fs.cat_file(cut))
        else:
            self.cells = self._cut(corpus, out.scratch / "ranking.bin")
            out.put_bytes(_CUT_NAME, self.cells.to_bytes())

    def _cut(self, corpus: Corpus, scratch: Path) -> Cells:
        with progress("Measuring", corpus.rows) as bar:
            for shard in corpus.shards:
                self._measurements.add(shard, bar)
        named, totals = named_values(self.measure.config), Totals()
        with SortedPieces(scratch) as pieces:
            for number, shard in enumerate(corpus.shards):
                for first, block in self._measurements.blocks(shard):
                    rows = ranked(block, number, first)[block["reason"] == 0]
                    totals.add(rows)
                    pieces.add(rows)
            cells = Cells(totals.summed(), named["cell"].to_numpy())
            cells.name(chain([named], map(self._measurements.values, corpus.shards)))
            cells.divide(self.measure.config)
            with progress("Ranking", int(cells.documents.sum())) as bar:
                for rows in pieces.merged():
                    cells.take(rows, by_tokens=self._by_tokens)
                    bar.advance(len(rows))
        return cells

    @contextmanager
    def of(self, number: int, shard: InputShard) -> Iterator[Judge]:
        """The judge of a shard, by its measurements."""
        with self._measurements.open(shard) as measurements:

            def judge(first: int, table: pa.Table) -> Verdict:
                measured = measurements.rows(first, table.num_rows)
                rows, reason = ranked(measured, number, first), measured["reason"].copy()
                may_be_kept = reason == 0
                reason[may_be_kept & ~self.cells.keeps(rows)] = self._over
                reason[may_be_kept & self.cells.leaves_out(rows)] = self._no_quota
                return reason, measured["tokens"]

            yield judge

    def finish(self, out: OutputDirectory) -> dict[str, Any]:
        """What the manifest says of the choice; with a quota, also its file."""
        cells, quota = self.cells, self.measure.config.quota
        unsaid = () if self.measure.config.counts_tokens else ("tokens", "kept_tokens")
        names = ("documents", "tokens", "kept_documents", "kept_tokens")
        says: dict[str, Any] = {name: int(getattr(cells, name).sum()) for name in names if name not in unsaid}
        lacking = cells.lacking(by_tokens=self._by_tokens)
        if quota is None:
            if lacking.any():
                logger.warning(
                    f"all that can be kept has {says['tokens']:,} tokens, {lacking.sum():,} under the budget"
                )
            return {"threshold": cells.thresholds()[0].as_py(), **says}
        self._warn(quota, lacking)
        out.put_bytes(QUOTA_NAME, cells.to_bytes(unsaid))
        of = {"by": quota.by, "values": len(cells), "lacking": int(lacking.sum()), "file": QUOTA_NAME}
        return {**says, "quota": {**of, "largest": cells.largest(unsaid)}}

    def _warn(self, quota: QuotaConfig, lacking: NDArray[np.int64]) -> None:
        cells, of = self.cells, f"of {len(self.cells):,} values of {', '.join(quota.by)}"
        if lacking.any():
            logger.warning(
                f"{(lacking > 0).sum():,} {of} have too few documents for their quota: {lacking.sum():,} "
                f"{'tokens' if self._by_tokens else 'documents'} are lacking"
                + (", which the others got as far as they have more" if quota.redistributes else "")
            )
        too_small = (cells.budget > 0) & (cells.documents > 0) & (cells.kept_documents == 0)
        if too_small.any():
            logger.warning(f"{too_small.sum():,} {of} keep nothing: the first document has more tokens than they get")
