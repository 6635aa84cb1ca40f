"""Sample what a source has gained since the last time, for training that goes on."""

from __future__ import annotations

from pathlib import Path

from loguru import logger
from pydantic import BaseModel

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.manifest import Manifest, read_manifest
from ml_filter.documents.readers import InputShard
from ml_filter.documents.sources import list_shards_with_states
from ml_filter.prepare.config import SampleConfig
from ml_filter.prepare.sampling import sample_shards


class SampledSoFar(BaseModel):
    """What was sampled: the state of each shard, and the directories of the samples and of their annotations."""

    shards: dict[str, str] = {}
    samples: list[str] = []
    annotations: list[str] = []


def sample_new_documents(
    source: SourceConfig, config: SampleConfig, output: str | Path, before: SampledSoFar | None
) -> tuple[Manifest, SampledSoFar]:
    """Draw a sample from the shards that are new or have changed, without the documents of the earlier samples.

    If nothing is new, the last sample is returned, for which all later work is already done.

    Raises:
        InputError: as `sample_documents`, or an earlier sample is missing.
    """
    before = before or SampledSoFar()
    shards, parents = list_shards_with_states(source)
    states = {_key(shard): shard.state for shard in shards}
    new = [shard for shard in shards if before.shards.get(_key(shard)) != shard.state]
    earlier = [read_manifest(directory, "documents") for directory in before.samples]
    if new:
        sample = sample_shards(new, parents, source, config, output, earlier)
        logger.info(f"New shards: {len(new):,} of {len(shards):,}; {sample.rows:,} documents sampled")
    after = before.model_copy(update={"shards": {**before.shards, **states}})
    if earlier and (not new or not sample.rows):
        logger.info("Nothing new since the last run: nothing is annotated or trained")
        return earlier[-1], after
    return sample, after.model_copy(update={"samples": [*before.samples, sample.root]})


def _key(shard: InputShard) -> str:
    return f"{shard.uri}#{shard.part[0]}" if shard.part[1] > 1 else shard.uri
