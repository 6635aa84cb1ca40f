"""Upload a labelled data set to the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from loguru import logger

from ml_filter.documents.manifest import Manifest
from ml_filter.errors import ConfigError, InputError
from ml_filter.publishing.card import CARD_NAME

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
    return upload_to_hub(
        api, name, "dataset", labelled.root, private=private, upload=lambda: _upload(api, labelled, name)
    )


def upload_to_hub(
    api: HfApi,
    name: str,
    kind: Literal["dataset", "model"],
    directory: str,
    *,
    private: bool,
    upload: Callable[[], None],
) -> str:
    """Make a repository where there is none, and upload to it.

    Args:
        api: of the Hub.
        name: OWNER/NAME.
        kind: of repository.
        directory: where what is pushed lies complete.
        private: make the repository private where it is new, and refuse one that is public.
        upload: does it.

    Returns:
        The URL of the repository.

    Raises:
        InputError: the Hub cannot be reached or refuses, or the repository is public but should be private.
    """
    what = {"dataset": "data set", "model": "head"}[kind]
    try:
        url = api.create_repo(name, repo_type=kind, private=private, exist_ok=True)
        exposed = private and not api.repo_info(name, repo_type=kind).private
        if not exposed:
            upload()
    except Exception as error:  # the Hub client raises some twenty kinds, down to those of its HTTP library
        raise InputError(
            f"{name} could not be pushed: {type(error).__name__}: {' '.join(str(error).split())}. The {what} is "
            f"complete in {directory}; check the name, the network and that the token may write, and run the "
            "command again"
        ) from error
    if exposed:
        raise InputError(f"{name} is public on the Hub, and the {what} is to be private; nothing was uploaded")
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
