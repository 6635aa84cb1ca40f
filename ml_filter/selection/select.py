"""Keep the best of scored documents: by a minimum score, a fraction, or a budget of tokens, over all or by quota.

A minimum is read off each document. For the other two the corpus is read twice: first what a choice rests on, to rank
the documents and find where to cut (choice.py, measure.py, ranking.py, quota.py), then whole, to write what is kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from loguru import logger
from numpy.typing import NDArray

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.dropping import DROPPED_DIRECTORY
from ml_filter.documents.manifest import Manifest
from ml_filter.documents.output_directory import OutputDirectory, ShardResult
from ml_filter.documents.readers import InputShard
from ml_filter.documents.tables import rename_clashing_columns
from ml_filter.progress import Progress, progress
from ml_filter.selection.choice import AtLeast, Best, Choice
from ml_filter.selection.config import FilterConfig
from ml_filter.selection.corpus import Corpus
from ml_filter.selection.measure import KEPT, UNSCORED, Measure, find_columns

REASON_COLUMN = "dropped_reason"
_WRITTEN = ("read", "kept", "tokens_kept")
"""Counts that are not about what is dropped."""


def filter_corpus(scored: SourceConfig, config: FilterConfig, output: str | Path) -> Manifest:
    """Write the documents that are kept, with all their columns; `selection` of the manifest's config says how it went.

    Documents without a score, or without a number that a condition asks for, are not kept, and counted as `unscored`.
    The others that are not kept are counted as `dropped`, and by reason: `condition:adult<=1`, `below_min_score`,
    `over_fraction`, `over_budget`, `no_quota` (its value gets nothing), `no_token_count` (null in the token column).

    Ranked by score, ties by a hash of id and seed: which documents are kept does not depend on the order or grouping of
    the shards. A budget is filled up to the first document that does not fit, by value of the quota's columns; a
    fraction is rounded down to whole documents.

    Raises:
        InputError: a column or criterion is not there or holds something else, or the source changed while it was read.
        ConfigError: the tokenizer cannot be loaded.
    """
    corpus = Corpus(scored)
    measure = Measure(config, find_columns(config, corpus.schemas(), corpus.name))
    settings = {"source": scored.model_dump(mode="json"), "filter": config.model_dump(mode="json")}
    if measure.counter is not None:
        settings["tokenizer"] = {"name": measure.counter.name, "digest": measure.counter.digest}
    with ExitStack() as stack:
        out = stack.enter_context(OutputDirectory(output, "filtered", settings, corpus.parents))
        if out.manifest:
            return out.manifest
        aside = None
        if config.dropped:
            place = f"{out.path}/{DROPPED_DIRECTORY}"
            aside = stack.enter_context(OutputDirectory(place, "dropped", settings, corpus.parents))
        choice = AtLeast(measure) if config.min_score is not None else Best(out, corpus, measure)
        return _Run(out, aside, corpus, config, choice).write(measure.columns.score)


class _Run:
    """Writes what is kept, and aside what is not where that is wanted."""

    def __init__(
        self, out: OutputDirectory, aside: OutputDirectory | None, corpus: Corpus, config: FilterConfig, choice: Choice
    ) -> None:
        self.out, self.aside, self.corpus, self.config, self.choice = out, aside, corpus, config, choice

    def write(self, score_column: str) -> Manifest:
        """Write the shards that are not done yet, and the manifests."""
        results: list[tuple[str, ShardResult]] = []
        with progress("Filtering", self.corpus.rows) as bar:
            for number, shard in enumerate(self.corpus.shards):
                result = self.out.finished_shard(shard.name)
                if result is None:
                    result = self._write_shard(number, shard, bar)
                else:
                    bar.advance(result.counts["read"])
                results.append((shard.name, result))
        counts = sum((Counter(result.counts) for _, result in results), Counter())
        if counts["read"] == 0:
            raise self.corpus.nothing_read(counts)
        if counts[KEPT] == 0:
            logger.warning(self._nothing_kept())
        selection = {"score_column": score_column, "ranked_by": self._ranked_by(), **self.choice.finish(self.out)}
        self.out.config = {**self.out.config, "selection": selection}
        if self.aside is not None and self.aside.manifest is None:
            made = [(shard.name, self.aside.finished_shard(shard.name)) for shard in self.corpus.shards]
            self.aside.finish([(name, result) for name, result in made if result is not None])
        return self.out.finish(results)

    def _write_shard(self, number: int, shard: InputShard, bar: Progress) -> ShardResult:
        reasons = self.choice.reasons
        counts = _counted(reasons, np.empty(0, np.uint8))
        if self.config.counts_tokens:
            counts["tokens_kept"] = 0
        with ExitStack() as stack:
            judge = stack.enter_context(self.choice.of(number, shard))
            writer = stack.enter_context(self.out.new_shard(shard.name))
            dropped = stack.enter_context(self.aside.new_shard(shard.name)) if self.aside is not None else None
            rejects = stack.enter_context(self.out.new_rejects(shard.name))
            for first, table in self.corpus.tables(shard, rejects):
                reason, tokens = judge(first, table)
                writer.write(table.filter(pa.array(reason == 0)))
                if dropped is not None:
                    dropped.write(_with_reasons(table, pa.array(reasons).take(pa.array(reason))))
                counts.update(_counted(reasons, reason))
                if self.config.counts_tokens:
                    counts["tokens_kept"] += int(tokens[reason == 0].sum())
                bar.advance(table.num_rows)
        if self.aside is not None and dropped is not None:
            with self.aside.new_rejects(shard.name) as nothing:
                pass
            self.aside.commit(shard.name, dropped, nothing, {n: counts[n] for n in counts if n not in _WRITTEN})
        return self.out.commit(shard.name, writer, rejects, counts)

    def _ranked_by(self) -> str:
        config = self.config
        return f"score / {config.temperature:g} + Gumbel noise of seed {config.seed}" if config.weighted else "score"

    def _nothing_kept(self) -> str:
        if self.config.min_score is None:
            return f"nothing was kept of {self.corpus.name}"
        return f"no document has a score of at least {self.config.min_score:g}: nothing was kept"


def _with_reasons(table: pa.Table, reasons: pa.Array) -> pa.Table:
    """The documents that are not kept, with the reason."""
    table = rename_clashing_columns(table, (REASON_COLUMN,)).append_column(REASON_COLUMN, reasons)
    return table.filter(pc.not_equal(reasons, KEPT))


def _counted(reasons: Sequence[str], reason: NDArray[np.uint8]) -> Counter[str]:
    """How many documents are kept, unscored, and dropped for each of the other reasons."""
    counts: Counter[str] = Counter(read=len(reason), kept=0, dropped=0, unscored=0)
    for name, count in zip(reasons, np.bincount(reason, minlength=len(reasons)).tolist(), strict=True):
        if name in (KEPT, UNSCORED):
            counts[name] += count
        else:
            counts.update({"dropped": count, f"dropped_{name}": count})
    return counts
