"""Upload heads to the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ml_filter.documents.hub import CARD_NAME, hub_api, upload_to_hub
from ml_filter.documents.manifest import read_manifest
from ml_filter.documents.result import read_result
from ml_filter.errors import InputError
from ml_filter.evaluation.result import EVALUATION_NAME, HeadEvaluation
from ml_filter.heads.store import fetch_head, read_head
from ml_filter.heads.trained import TRAINING_NAME, TrainedHead
from ml_filter.publishing.cards import local_name, write_model_card

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi


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
    return upload_to_hub(api, name, "model", "head", trained.origin, private=private, upload=upload)


def read_evaluation(directory: str | Path, head: TrainedHead) -> HeadEvaluation:
    """Read the figures that `ml-filter evaluate` wrote for a head.

    Raises:
        InputError: the directory is not an evaluation, or is that of another head.
    """
    manifest = read_manifest(directory, "predictions")
    evaluation = read_result(manifest, EVALUATION_NAME, HeadEvaluation, "ml-filter evaluate")
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
