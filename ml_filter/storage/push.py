"""Upload a labelled data set to the Hugging Face Hub."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loguru import logger

from ml_filter.documents.manifest import Manifest
from ml_filter.errors import ConfigError, InputError
from ml_filter.storage.card import CARD_NAME

if TYPE_CHECKING:
    from huggingface_hub import HfApi


def hub_api(name: str) -> HfApi:
    """The Hub's client, with the token of HF_TOKEN or `hf auth login`.

    Raises:
        ConfigError: there is no token to push to `name` with.
    """
    from huggingface_hub import HfApi, get_token

    if get_token() is None:
        raise ConfigError(f"pushing to {name} needs a token that may write: set HF_TOKEN, or run `hf auth login`")
    return HfApi()


def push_to_hub(api: HfApi, labelled: Manifest, name: str, private: bool) -> str:
    """Upload the splits and the data card in one commit.

    The manifest stays here, since it names local paths; the card holds its digests.

    Args:
        api: of the Hub.
        labelled: of a local directory that `publish_labels` made.
        name: OWNER/NAME.
        private: make the data set private where it is new, and refuse one that is public.

    Returns:
        The URL of the data set.

    Raises:
        InputError: the Hub cannot be reached or refuses, or the data set is public but should be private.
    """
    try:
        url = api.create_repo(name, repo_type="dataset", private=private, exist_ok=True)
        exposed = private and not api.dataset_info(name).private
        if not exposed:
            _upload(api, labelled, name)
    except Exception as error:  # the Hub client raises some twenty kinds, down to those of its HTTP library
        raise InputError(
            f"{name} could not be pushed: {type(error).__name__}: {' '.join(str(error).split())}. The data set is "
            f"complete in {labelled.root}; check the name, the network and that the token may write, and run the "
            "command again"
        ) from error
    if exposed:
        raise InputError(f"{name} is public on the Hub, and the data set is to be private; nothing was uploaded")
    logger.info(f"pushed to {url}")
    return str(url)


def _upload(api: HfApi, labelled: Manifest, name: str) -> None:
    api.upload_folder(
        folder_path=labelled.root,
        repo_id=name,
        repo_type="dataset",
        allow_patterns=[CARD_NAME, *(shard.path for shard in labelled.shards)],
        delete_patterns=["data/*.parquet"],
        commit_message=f"Labelled data set, manifest {labelled.digest[:12]}",
    )
