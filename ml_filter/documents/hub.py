"""Hugging Face Hub data sets, streamed: nothing is downloaded but what is read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ml_filter.documents.config import SourceConfig
from ml_filter.errors import InputError

if TYPE_CHECKING:
    from datasets import IterableDataset


def pinned_revision(name: str, revision: str | None) -> str:
    """The commit that a data set's branch or tag stands at, so that a rerun reads the same files.

    Raises:
        InputError: the Hub does not know the data set or cannot be reached.
    """
    from huggingface_hub import HfApi

    try:
        return str(HfApi().dataset_info(name, revision=revision).sha)
    except Exception as error:  # the Hub client raises some twenty kinds, down to those of its HTTP library
        raise InputError(
            f"hf://datasets/{name}: {type(error).__name__}: {str(error).splitlines()[0]}. "
            "Check the name, the network and, for a private data set, `hf auth login`"
        ) from error


def open_data_set(name: str, revision: str | None, source: SourceConfig) -> IterableDataset:
    """A streaming data set; `name` is `owner/name` on the Hub or a local directory in its layout.

    Raises:
        InputError: there is no such subset or split, or the data set has no files that can be read.
    """
    import datasets

    try:
        return datasets.load_dataset(name, source.subset, split=source.split, revision=revision, streaming=True)
    except (ValueError, OSError, RuntimeError) as error:  # no such split; no data files; only a loading script
        raise InputError(f"hf://datasets/{name}: {error}") from error
