"""Keep the best scored documents: by a minimum score, a fraction or a token budget, overall or by quota.

A shard is written again only if its documents or the rule for them changed. A minimum score is always the same rule; a
fraction or budget is another one as soon as documents that are added move its cut.

A minimum score is checked document by document. A fraction or budget takes two passes over the corpus: the first
measures every document (measure.py), ranks them and finds the cut (ranking.py); the second writes what is kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from loguru import logger
from numpy.typing import NDArray

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.dropping import DROPPED_DIRECTORY
from ml_filter.documents.finished import ShardResult, first_reject
from ml_filter.documents.growing import GrowingDirectory
from ml_filter.documents.manifest import PROGRESS_NAME, Manifest, digest_of
from ml_filter.documents.output_directory import OutputDirectory
from ml_filter.documents.readers import InputShard
from ml_filter.documents.rejects import nothing_read
from ml_filter.documents.tables import rename_clashing_columns
from ml_filter.progress import Progress, progress
from ml_filter.selection.config import FilterConfig, QuotaConfig
from ml_filter.selection.measure import KEPT, UNSCORED, Corpus, Measure, Measurements, find_columns
from ml_filter.selection.ranking import Cells, Totals, cell_of, external_sort, ranked

REASON_COLUMN = "dropped_reason"
QUOTA_NAME = "quota.parquet"
"""Beside the shards: one row for each value of the quota's columns."""
_COUNTS_OF_KEPT = ("read", "kept", "tokens_kept")
Decision = tuple[NDArray[np.uint8], NDArray[np.uint64]]
"""For each document of a table: the index of its reason, 0 if it is kept, and its tokens."""


def filter_corpus(scored: SourceConfig, config: FilterConfig, output: str | Path) -> Manifest:
    """Write the kept documents with all their columns. `selection` in the manifest's config describes the result.

    Documents without a score, or without a number that a condition needs, are counted as `unscored`, all others that
    are not kept as `dropped`, and by reason (docs/selection.md). Documents rank by score, ties by a hash of id and
    seed, so the result does not depend on the order or grouping of shards. For each value of the quota's columns, a
    budget is filled up to the first document that does not fit; a fraction is rounded down to whole documents.

    Raises:
        InputError: a column or criterion is missing or has the wrong type, or the corpus changed during the run.
        ConfigError: the tokenizer cannot be loaded.
    """
    corpus = Corpus(scored)
    measure = Measure(config, find_columns(config, corpus.schemas(), corpus.name))
    settings = {"source": scored.model_dump(mode="json"), "filter": config.model_dump(mode="json")}
    if measure.counter is not None:
        settings["tokenizer"] = {"name": measure.counter.name, "digest": measure.counter.digest}
    with ExitStack() as stack:
        out = stack.enter_context(GrowingDirectory(output, "filtered", settings, corpus.parents))
        if out.manifest:
            return out.manifest
        dropped = None
        if config.dropped:
            path = f"{out.path}/{DROPPED_DIRECTORY}"
            dropped = stack.enter_context(GrowingDirectory(path, "dropped", settings, corpus.parents))
        selection = MinScore(measure) if config.min_score is not None else TopRanked(out, corpus, measure)
        return _write(out, dropped, corpus, selection)


# --- Deciding --------------------------------------------------------------------------------------------------------


class MinScore:
    """Keeps documents with at least the minimum score. `reasons` says why others are not kept; the first is `kept`."""

    def __init__(self, measure: Measure) -> None:
        self.measure, self.reasons = measure, measure.reasons

    def state_of(self, number: int, shard: InputShard) -> str:
        """A digest of all that the output for shard `number` depends on beside the settings."""
        return str(shard.state)

    def decide(self, number: int, shard: InputShard, first_row: int, table: pa.Table) -> Decision:
        """Decide about consecutive documents of shard `number` of the corpus, from row `first_row`."""
        measured, _ = self.measure(table, shard.uri)
        return measured["reason"], measured["tokens"]

    def finish(self, out: OutputDirectory) -> dict[str, Any]:
        """The description for the manifest."""
        return {"threshold": self.measure.config.min_score}


class TopRanked:
    """Keeps the best documents up to a fraction or a budget.

    The cut of the ranking is found first and saved in the unfinished output, so that a resumed run uses the same one.
    """

    def __init__(self, out: GrowingDirectory, corpus: Corpus, measure: Measure) -> None:
        self.measure = measure
        self._by_tokens = measure.config.token_budget is not None
        self._over, self._no_quota = len(measure.reasons), len(measure.reasons) + 1
        self.reasons = [*measure.reasons, "over_budget" if self._by_tokens else "over_fraction"]
        self.reasons += ["no_quota"] if measure.config.quota and measure.config.quota.named else []
        self._measurements = Measurements(out.scratch, corpus, measure)
        name = f"{PROGRESS_NAME}/cut-{out.inputs[:8]}.parquet"
        if (cut := (out.location / name).find_bytes()) is not None:
            self.cells = Cells.from_bytes(cut)
        else:
            self.cells = self._find_cut(corpus, out.scratch / "ranking.bin")
            out.put_bytes(name, self.cells.to_bytes())

    def state_of(self, number: int, shard: InputShard) -> str:
        """A digest of all that the output for shard `number` depends on beside the settings."""
        return digest_of([shard.state, self.cells.rule_for(number)])

    def _find_cut(self, corpus: Corpus, scratch: Path) -> Cells:
        with progress("Measuring", corpus.rows) as bar:
            for shard in corpus.shards:
                self._measurements.add(shard, bar.advance)
        config, totals = self.measure.config, Totals()
        # A named value may have no documents, but still gets a row in the report.
        names = [""] if config.quota is None else list(config.quota.named or ())
        named = {cell_of(name): name for name in names}

        def rows_to_rank() -> Iterator[NDArray[np.void]]:
            for number, shard in enumerate(corpus.shards):
                for first_row, block in self._measurements.blocks(shard):
                    rows = ranked(block, number, first_row)[block["reason"] == 0]
                    totals.add(rows)
                    yield rows

        ranking = external_sort(rows_to_rank(), scratch)
        cells = totals.cells(named)
        cells.set_values(named, map(self._measurements.values, corpus.shards))
        cells.set_budgets(config)
        with progress("Ranking", int(cells["documents"].sum())) as bar:
            for rows in ranking:
                cells.fill(rows, by_tokens=self._by_tokens)
                bar.advance(len(rows))
        scratch.unlink()
        return cells

    def decide(self, number: int, shard: InputShard, first_row: int, table: pa.Table) -> Decision:
        """Decide about the documents of a table, from their measurements."""
        measured = self._measurements.rows(shard, first_row, table.num_rows)
        rows, reason = ranked(measured, number, first_row), measured["reason"].copy()
        may_be_kept = reason == 0
        reason[may_be_kept & ~self.cells.keeps(rows)] = self._over
        reason[may_be_kept & self.cells.excludes(rows)] = self._no_quota
        return reason, measured["tokens"]

    def finish(self, out: OutputDirectory) -> dict[str, Any]:
        """The description for the manifest; with a quota, also writes its table."""
        cells, quota = self.cells, self.measure.config.quota
        uncounted = () if self.measure.config.counts_tokens else ("tokens", "kept_tokens")
        names = [n for n in ("documents", "tokens", "kept_documents", "kept_tokens") if n not in uncounted]
        sums: dict[str, Any] = {name: int(cells[name].sum()) for name in names}
        shortfall = cells.shortfall(by_tokens=self._by_tokens)
        if quota is None:
            if shortfall.any():
                logger.warning(
                    f"All documents that may be kept have {sums['tokens']:,} tokens, {shortfall.sum():,} less than the "
                    "budget"
                )
            return {"threshold": cells.thresholds()[0].as_py(), **sums}
        self._warn(quota, shortfall)
        out.put_bytes(QUOTA_NAME, cells.to_bytes(uncounted))
        description = {"by": quota.by, "values": len(cells), "lacking": int(shortfall.sum()), "file": QUOTA_NAME}
        return {**sums, "quota": {**description, "largest": cells.largest(uncounted)}}

    def _warn(self, quota: QuotaConfig, shortfall: NDArray[np.int64]) -> None:
        cells, columns = self.cells, ", ".join(quota.by)
        if shortfall.any():
            logger.warning(
                f"{(shortfall > 0).sum():,} of {len(cells):,} values of {columns} have too few documents for their "
                f"quota: {shortfall.sum():,} {'tokens' if self._by_tokens else 'documents'} are missing"
                + (". Other values got them if they had enough documents" if quota.redistributes else "")
            )
        too_small = (cells["budget"] > 0) & (cells["documents"] > 0) & (cells["kept_documents"] == 0)
        if too_small.any():
            logger.warning(
                f"{too_small.sum():,} of {len(cells):,} values of {columns} keep nothing: their best document has more "
                "tokens than their budget"
            )


# --- Writing ---------------------------------------------------------------------------------------------------------


def _write(
    out: GrowingDirectory, dropped: GrowingDirectory | None, corpus: Corpus, selection: MinScore | TopRanked
) -> Manifest:
    """Write the unfinished shards, and then the manifests."""
    states = {shard.name: selection.state_of(number, shard) for number, shard in enumerate(corpus.shards)}
    for directory in filter(None, (out, dropped)):
        directory.reuse(states)
    config, columns = selection.measure.config, selection.measure.columns
    results: list[tuple[str, ShardResult]] = []
    with progress("Filtering", corpus.rows) as bar:
        finished = out.finished_shards(states)
        if dropped is not None and dropped.manifest is None:
            finished = {name: finished[name] for name in dropped.finished_shards(states) if name in finished}
        for number, shard in enumerate(corpus.shards):
            result = finished.get(shard.name)
            if result is None:
                result = _write_shard(out, dropped, corpus, selection, number, bar)
            else:
                bar.advance(result.counts["read"])
            results.append((shard.name, result))
    counts = sum((Counter(result.counts) for _, result in results), Counter())
    if counts["read"] == 0:
        raise nothing_read(corpus.source.paths, counts, first=first_reject(results))
    if counts[KEPT] == 0:
        reason = "" if config.min_score is None else f": no score is at least {config.min_score:g}"
        logger.warning(f"No document of {corpus.name} was kept{reason}")
    noise = f" / {config.temperature:g} + Gumbel noise of seed {config.seed}" if config.weighted else ""
    selected = {"score_column": columns.score, "ranked_by": f"score{noise}", **selection.finish(out)}
    out.config = {**out.config, "selection": selected}
    if dropped is not None and dropped.manifest is None:
        dropped.finish(dropped.finished_shards(states).items())
    return out.finish(results)


def _write_shard(
    out: OutputDirectory,
    dropped: OutputDirectory | None,
    corpus: Corpus,
    selection: MinScore | TopRanked,
    number: int,
    bar: Progress,
) -> ShardResult:
    shard, reasons, counts_tokens = corpus.shards[number], selection.reasons, selection.measure.config.counts_tokens
    counts = _count(reasons, np.empty(0, np.uint8))
    if counts_tokens:
        counts["tokens_kept"] = 0
    with ExitStack() as stack:
        kept = stack.enter_context(out.new_shard(shard.name))
        others = stack.enter_context(dropped.new_shard(shard.name)) if dropped is not None else None
        rejects = stack.enter_context(out.new_rejects(shard.name))
        for first_row, table in corpus.tables(shard, rejects):
            reason, tokens = selection.decide(number, shard, first_row, table)
            kept.write(table.filter(pa.array(reason == 0)))
            if others is not None:
                named = pa.array(reasons).take(pa.array(reason))
                table_with_reason = rename_clashing_columns(table, (REASON_COLUMN,)).append_column(REASON_COLUMN, named)
                others.write(table_with_reason.filter(pa.array(reason != 0)))
            counts.update(_count(reasons, reason))
            if counts_tokens:
                counts["tokens_kept"] += int(tokens[reason == 0].sum())
            bar.advance(table.num_rows)
    if dropped is not None and others is not None:
        with dropped.new_rejects(shard.name) as no_rejects:
            pass
        dropped_counts = {name: count for name, count in counts.items() if name not in _COUNTS_OF_KEPT}
        dropped.commit(shard.name, others, no_rejects, dropped_counts, selection.state_of(number, shard))
    return out.commit(shard.name, kept, rejects, counts, selection.state_of(number, shard))


def _count(reasons: Sequence[str], reason: NDArray[np.uint8]) -> Counter[str]:
    """How many documents are kept, unscored, and dropped for each other reason."""
    counts: Counter[str] = Counter(read=len(reason), kept=0, dropped=0, unscored=0)
    for name, count in zip(reasons, np.bincount(reason, minlength=len(reasons)).tolist(), strict=True):
        if name in (KEPT, UNSCORED):
            counts[name] += count
        else:
            counts.update({"dropped": count, f"dropped_{name}": count})
    return counts
