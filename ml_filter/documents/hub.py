"""Upload directories to the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from loguru import logger

from ml_filter.config import hub_token
from ml_filter.documents.manifest import Manifest
from ml_filter.errors import ConfigError, InputError
from ml_filter.location import Location, local_copy

if TYPE_CHECKING:
    from huggingface_hub import HfApi

CARD_NAME = "README.md"


def hub_api(name: str) -> HfApi:
    """The Hub's client, with the token of HF_TOKEN or `hf auth login`.

    Raises:
        ConfigError: no token is set.
    """
    from huggingface_hub import HfApi, get_token

    token = hub_token()
    if (token or get_token()) is None:
        raise ConfigError(f"pushing to {name} requires a token with write access: set HF_TOKEN or run `hf auth login`")
    return HfApi(token=token)


def push_data_set(api: HfApi, data_set: Manifest, name: str, *, private: bool, message: str) -> str:
    """Upload the shards and the card of a directory, as one commit that deletes other data; returns the URL.

    The manifest is not uploaded, because it names local paths; the card has its digests. Raises as `upload_to_hub`.
    """

    def upload() -> None:
        files = [CARD_NAME, *(shard.path for shard in data_set.shards)]
        with local_copy(Location(data_set.root), files) as folder:
            api.upload_folder(
                folder_path=folder,
                repo_id=name,
                repo_type="dataset",
                allow_patterns=files,
                delete_patterns=["data/*"],
                commit_message=f"{message}, manifest {data_set.digest[:12]}",
            )

    return upload_to_hub(api, name, "dataset", "data set", data_set.root, private=private, upload=upload)


def upload_to_hub(
    api: HfApi,
    name: str,
    kind: Literal["dataset", "model"],
    label: str,
    directory: str,
    *,
    private: bool,
    upload: Callable[[], None],
) -> str:
    """Create a repository if it does not exist, and upload to it; returns its URL.

    Args:
        label: what is uploaded, and `directory` where it is now, for messages.

    Raises:
        InputError: a private upload would be public, or the Hub cannot be reached or rejects the upload.
    """
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
