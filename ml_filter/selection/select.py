"""Keep the documents whose score reaches a minimum."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from loguru import logger

from ml_filter.documents.manifest import Manifest
from ml_filter.documents.output import OutputDirectory
from ml_filter.documents.shards import Transformed, map_shards
from ml_filter.documents.sources import list_shards
from ml_filter.errors import InputError
from ml_filter.settings import FilterConfig, SourceConfig


def filter_corpus(scored: SourceConfig, config: FilterConfig, output: str | Path) -> Manifest:
    """Write the documents with `score >= min_score`, with all their columns.

    Documents that could not be scored have no score to compare: they are not kept, and counted as `unscored`.

    Raises:
        InputError: the source has no `score` column, or one that holds no numbers.
    """
    shards, parents = list_shards(scored)
    settings = {"source": scored.model_dump(mode="json"), "filter": config.model_dump(mode="json")}
    with OutputDirectory(output, "filtered", settings, parents) as out:
        if out.manifest:
            return out.manifest

        def keep(tables: Iterator[pa.Table]) -> Iterator[Transformed]:
            for table in tables:
                if "score" not in table.column_names:
                    raise InputError(f"{', '.join(scored.paths)} has no column 'score'; make it with ml-filter score")
                kind = table["score"].type
                if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_null(kind)):
                    raise InputError(f"{', '.join(scored.paths)}: column 'score' holds {kind}, not numbers")
                reaches = pc.greater_equal(table["score"], config.min_score)
                kept = table.filter(reaches)
                unscored = table["score"].null_count
                dropped = table.num_rows - kept.num_rows - unscored
                yield Transformed(kept, {"kept": kept.num_rows, "dropped": dropped, "unscored": unscored})

        manifest = map_shards(out, shards, scored, keep, "Filtering")
        if manifest.rows == 0:
            logger.warning(f"no document has a score of at least {config.min_score:g}: nothing was kept")
        return manifest
