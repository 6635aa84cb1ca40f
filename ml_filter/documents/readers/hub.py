"""Hugging Face Hub data sets, streamed: only what is read is downloaded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ml_filter.config import hub_token
from ml_filter.documents.config import SourceConfig
from ml_filter.documents.readers.base import InputShard, Record
from ml_filter.errors import InputError

if TYPE_CHECKING:
    from datasets import IterableDataset


def pinned_revision(name: str, revision: str | None) -> str:
    """The commit that a branch or tag of a data set points to, so that a rerun reads the same files.

    Raises:
        InputError: the data set does not exist or the Hub cannot be reached.
    """
    from huggingface_hub import HfApi

    try:
        return str(HfApi(token=hub_token()).dataset_info(name, revision=revision).sha)
    except Exception as error:  # the Hub client raises some twenty kinds, down to those of its HTTP library
        raise InputError(
            f"hf://datasets/{name}: {type(error).__name__}: {str(error).splitlines()[0]}. "
            "Check the name, the network and, for a private data set, `hf auth login`"
        ) from error


def open_data_set(name: str, revision: str | None, source: SourceConfig) -> IterableDataset:
    """A streaming data set; `name` is `owner/name` on the Hub or a local directory in its layout.

    Raises:
        InputError: the subset or split does not exist, or the data set has no readable files.
    """
    import datasets

    try:
        return datasets.load_dataset(
            name, source.subset, split=source.split, revision=revision, streaming=True, token=hub_token()
        )
    except (ValueError, OSError, RuntimeError) as error:  # no such split; no data files; only a loading script
        raise InputError(f"hf://datasets/{name}: {error}") from error


def read_records(shard: InputShard, source: SourceConfig) -> Iterator[Record]:
    """The rows of one shard of a data set."""
    name, _, revision = shard.uri.removeprefix("hf://datasets/").partition("@")
    number, parts = shard.part
    data = open_data_set(name, revision or None, source)
    if parts > 1:
        data = data.shard(num_shards=parts, index=number)
    if data.features:
        data = data.decode(False)  # an image may be a URL that the data set names, and would be fetched
    for position, row in enumerate(data):
        yield f"row {position}", row
