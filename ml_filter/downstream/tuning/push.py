"""Upload a tuned model to the Hugging Face Hub."""

from __future__ import annotations

from pathlib import PurePosixPath

from ml_filter.documents.hub import hub_api, upload_to_hub
from ml_filter.documents.manifest import Parent
from ml_filter.downstream.tuning.data import REJECTS_FILE, TRAINED_ON_FILE
from ml_filter.downstream.tuning.result import (
    MODEL_DIRECTORY,
    REPORT_NAME,
    TUNING_NAME,
    Ancestor,
    TunedModel,
    public_path,
)
from ml_filter.location import Location, local_copy

_KEPT_HERE = (REJECTS_FILE, TRAINED_ON_FILE, REPORT_NAME)
"""They name local paths, quote the data, or tell whether a text was in it."""


def push_tuned(model: TunedModel, name: str, *, private: bool) -> str:
    """Upload a tuned model as one commit and return the URL of the repository.

    The merged weights and the tokenizer go to its top, where transformers looks for them; adapter, GGUF and
    card keep their names. `tuning.json` is uploaded without local paths.

    Raises:
        ConfigError: no token is set.
        InputError: the Hub rejects the upload, or a private upload would be public.
    """
    from huggingface_hub import CommitOperationAdd

    api = hub_api(name)
    names = [file for file in model.result.files if file not in _KEPT_HERE]

    def upload() -> None:
        with local_copy(Location(model.root), names) as directory:
            operations = [
                CommitOperationAdd(file.removeprefix(f"{MODEL_DIRECTORY}/"), str(directory / file)) for file in names
            ]
            operations.append(CommitOperationAdd(TUNING_NAME, _without_local_paths(model)))
            api.create_commit(name, operations, commit_message=f"Tuned model {model.digest[:12]}")

    return upload_to_hub(api, name, "model", "model", model.root, private=private, upload=upload)


def _without_local_paths(model: TunedModel) -> bytes:
    result = model.result.model_copy(deep=True)
    inputs: list[Parent | Ancestor] = [*result.parents, *result.lineage]
    for item in inputs:
        item.path = public_path(item.path)
    result.source = result.source.model_copy(update={"paths": [public_path(path) for path in result.source.paths]})
    result.config = result.config.model_copy(update={"base": PurePosixPath(result.base.path).name})
    return result.to_json()
