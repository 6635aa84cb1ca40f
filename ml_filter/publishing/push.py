"""Upload to the Hugging Face Hub."""

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
        ConfigError: there is no token to push to `name`.
    """
    from huggingface_hub import HfApi, get_token

    if get_token() is None:
        raise ConfigError(f"pushing to {name} requires a token with write access: set HF_TOKEN or run `hf auth login`")
    return HfApi()


def push_to_hub(api: HfApi, labelled: Manifest, name: str, private: bool) -> str:
    """Upload the splits and the data card of a local directory that `publish_labels` wrote, as one commit.

    The manifest is not uploaded, because it names local paths; the card has its digests. Arguments, return value and
    errors as in `upload_to_hub`.
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
    """Create a repository if it does not exist, and upload to it.

    Args:
        api: the Hub's client.
        name: OWNER/NAME.
        kind: kind of repository.
        directory: the local directory, for error messages.
        private: create the repository as private; fail if it exists and is public.
        upload: uploads the files.

    Returns:
        The URL of the repository.

    Raises:
        InputError: the Hub cannot be reached or rejects the upload, or the repository is public but must be private.
    """
    label = {"dataset": "data set", "model": "head"}[kind]
    try:
        url = api.create_repo(name, repo_type=kind, private=private, exist_ok=True)
        is_exposed = private and not api.repo_info(name, repo_type=kind).private
        if not is_exposed:
            upload()
    except Exception as error:  # the Hub client raises some twenty types, including those of its HTTP library
        raise InputError(
            f"{name} could not be pushed: {type(error).__name__}: {' '.join(str(error).split())}. The {label} is "
            f"complete in {directory}; check the name, the network and the token's write access, then run the command "
            "again"
        ) from error
    if is_exposed:
        raise InputError(
            f"{name} is public on the Hub, but the {label} must be private; nothing was uploaded. Make the repository "
            "private or choose another name"
        )
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
