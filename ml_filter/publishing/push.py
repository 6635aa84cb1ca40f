"""Upload data sets and heads to the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from loguru import logger

from ml_filter.config import hub_token
from ml_filter.documents.manifest import Manifest, read_manifest
from ml_filter.errors import ConfigError, InputError
from ml_filter.evaluation.result import EVALUATION_NAME, HeadEvaluation
from ml_filter.heads.store import fetch_head, read_head
from ml_filter.heads.trained import TRAINING_NAME, TrainedHead
from ml_filter.location import Location, local_copy
from ml_filter.publishing.cards import CARD_NAME, local_name, write_model_card

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi


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


def push_to_hub(api: HfApi, labelled: Manifest, name: str, private: bool) -> str:
    """Upload the splits and the data card of a directory that `publish_labels` wrote, as one commit.

    The manifest is not uploaded, because it names local paths; the card has its digests. Raises as `push_model`.
    """

    def upload() -> None:
        files = [CARD_NAME, *(shard.path for shard in labelled.shards)]
        with local_copy(Location(labelled.root), files) as folder:
            api.upload_folder(
                folder_path=folder,
                repo_id=name,
                repo_type="dataset",
                allow_patterns=files,
                delete_patterns=["data/*.parquet"],
                commit_message=f"Labelled data set, manifest {labelled.digest[:12]}",
            )

    return _upload(api, name, "dataset", labelled.root, private=private, upload=upload)


def _upload(
    api: HfApi,
    name: str,
    kind: Literal["dataset", "model"],
    directory: str,
    *,
    private: bool,
    upload: Callable[[], None],
) -> str:
    """Create a repository if it does not exist, and upload to it. `directory` is where it is now, for messages."""
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


_KEPT = {".gitattributes"}
"""Files that the Hub adds to a repository itself."""


def push_model(
    head: str | Path,
    name: str,
    *,
    private: bool = False,
    evaluations: Sequence[str | Path] = (),
    license: str = "unknown",
) -> str:
    """Upload the files of a head and its model card as one commit, which deletes all other files of the repository.

    The card states the figures of the evaluations, directories that `ml-filter evaluate` wrote for this head.
    `training.json` is uploaded without the local paths of the labels. Returns the URL of the repository.

    Raises:
        InputError: the head does not exist, an evaluation belongs to another head, a private upload would be public,
            or the Hub cannot be reached or rejects the upload.
        ConfigError: no token is set.
    """
    trained = read_head(head)
    card = write_model_card(trained, name, [read_evaluation(path, trained) for path in evaluations], license)
    api = hub_api(name)
    upload = partial(_commit, api, name, trained, card)
    return _upload(api, name, "model", trained.origin, private=private, upload=upload)


def read_evaluation(directory: str | Path, head: TrainedHead) -> HeadEvaluation:
    """Read the figures that `ml-filter evaluate` wrote for a head.

    Raises:
        InputError: the directory is not an evaluation, or is that of another head.
    """
    manifest = read_manifest(directory, "predictions")
    evaluation = HeadEvaluation.model_validate_json(Location(manifest.path_of(EVALUATION_NAME)).read_bytes())
    if evaluation.head_digest != head.digest:
        raise InputError(
            f"{directory} evaluates another head ({evaluation.head}), not {head.origin}; run `ml-filter evaluate` "
            "on this head"
        )
    return evaluation


def _commit(api: HfApi, name: str, head: TrainedHead, card: str) -> None:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    files: dict[str, str | bytes] = {CARD_NAME: card.encode(), TRAINING_NAME: _without_local_paths(head)}
    directory = fetch_head(head).directory
    files |= {path: str(directory / path) for path in head.training.files}
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        CommitOperationAdd(path_in_repo=path, path_or_fileobj=content) for path, content in files.items()
    ]
    operations += [
        CommitOperationDelete(path_in_repo=path)
        for path in api.list_repo_files(name)
        if path not in _KEPT | files.keys()
    ]
    api.create_commit(name, operations, commit_message=f"Head, weights {head.digest[:12]}")


def _without_local_paths(head: TrainedHead) -> bytes:
    training = head.training.model_copy(deep=True)
    for parent in training.parents:
        parent.path = local_name(parent.path)
    return (training.model_dump_json(indent=1) + "\n").encode()
