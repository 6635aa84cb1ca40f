"""Upload a tuned model to the Hugging Face Hub."""

from __future__ import annotations

from pathlib import PurePosixPath

from loguru import logger

from ml_filter.config import hub_token
from ml_filter.documents.manifest import Parent
from ml_filter.downstream.tuning.result import MODEL_DIRECTORY, TUNING_NAME, Ancestor, TunedModel
from ml_filter.errors import ConfigError, InputError
from ml_filter.location import Location, local_copy

_KEPT_HERE = ("rejects.jsonl",)
"""Rejects name local paths and quote the data."""


def push_tuned(model: TunedModel, name: str, *, private: bool) -> str:
    """Upload a tuned model as one commit and return the URL of the repository.

    The merged weights and the tokenizer go to its top, where transformers looks for them; adapter, GGUF, report and
    card keep their names. `tuning.json` is uploaded without local paths.

    Raises:
        ConfigError: no token is set.
        InputError: the Hub rejects the upload, or a private upload would be public.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token

    token = hub_token()
    if (token or get_token()) is None:
        raise ConfigError(f"pushing to {name} requires a token with write access: set HF_TOKEN or run `hf auth login`")
    api = HfApi(token=token)
    names = [file for file in model.result.files if file not in _KEPT_HERE and file != "report.html"]
    try:
        url = api.create_repo(name, private=private, exist_ok=True)
        is_exposed = private and not api.repo_info(name).private
        if not is_exposed:
            with local_copy(Location(model.root), names) as directory:
                operations = [
                    CommitOperationAdd(file.removeprefix(f"{MODEL_DIRECTORY}/"), str(directory / file))
                    for file in names
                ]
                operations.append(CommitOperationAdd(TUNING_NAME, _without_local_paths(model)))
                api.create_commit(name, operations, commit_message=f"Tuned model {model.digest[:12]}")
    except Exception as error:  # the Hub client raises some twenty types, including those of its HTTP library
        raise InputError(
            f"{name} could not be pushed: {type(error).__name__}: {' '.join(str(error).split())}. The model is "
            f"complete in {model.root}; check the name, the network and the token's write access, then run the command "
            "again"
        ) from error
    if is_exposed:
        raise InputError(
            f"{name} is public on the Hub, but the model must be private; nothing was uploaded. Make the repository "
            "private or choose another name"
        )
    logger.info(f"pushed to {url}")
    return str(url)


def _without_local_paths(model: TunedModel) -> bytes:
    result = model.result.model_copy(deep=True)
    inputs: list[Parent | Ancestor] = [*result.parents, *result.lineage]
    for item in inputs:
        item.path = item.path if item.path.startswith("hf://") else PurePosixPath(item.path).name
    result.config = result.config.model_copy(update={"base": PurePosixPath(result.base.path).name})
    return result.to_json()
