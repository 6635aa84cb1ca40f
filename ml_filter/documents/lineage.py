"""What a directory was made from: its runs, the prompts and annotators of its scores, the texts of its documents."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from ml_filter.criterion import Criterion
from ml_filter.documents.config import SourceConfig
from ml_filter.documents.manifest import Manifest, find_manifest
from ml_filter.errors import InputError, MlFilterError
from ml_filter.mongodb import is_mongodb

_CRITERIA = "criteria"


def ancestors(manifest: Manifest) -> Iterator[Manifest]:
    """The directories that a directory was made from, nearest first, as far as they still exist unchanged."""
    for parent in manifest.parents:
        source = find_source_manifest(parent.path)
        if source is not None and source.digest == parent.digest:
            yield source
            yield from ancestors(source)


def find_source_manifest(path: str) -> Manifest | None:
    """The manifest at a path of any source; None: it has no manifest, or its store cannot be reached.

    Raises:
        InputError: the file is not a manifest that this version reads.
    """
    if path.startswith("hf:") or is_mongodb(path) or path.endswith(":"):  # Hub data sets, installed documents
        return None
    try:
        return find_manifest(path)
    except MlFilterError:
        raise
    except Exception:  # a client's own error; reading the documents will report it
        return None


def annotation_runs(manifest: Manifest, criterion: str | None = None) -> list[dict[str, Any]]:
    """Annotator, votes and prompts of each annotation run that the scores come from.

    Args:
        manifest: of aggregated scores, or of a directory made from them.
        criterion: only the prompts of this criterion.

    Returns:
        A dict for each run. Each of its `prompts` has the score range and the threshold of its criterion.
    """
    runs = []
    for run in ancestors(manifest):
        if run.kind == "annotations":
            criteria = {criterion.name: criterion for criterion in criteria_of(run)}
            prompts = [
                {
                    **prompt,
                    "score_range": list(criteria[prompt["criterion"]].bounds),
                    "threshold": criteria[prompt["criterion"]].threshold,
                }
                for prompt in run.config["prompts"]
                if criterion in (None, prompt["criterion"])
            ]
            runs.append({**{key: run.config.get(key) for key in ("annotator", "votes")}, "prompts": prompts})
    return runs


def annotation_summary(runs: Iterable[dict[str, Any]]) -> dict[str, str]:
    """The annotators and prompts of annotation runs as text: `annotator`, `prompt`, `prompt_digest`, comma-separated.

    Each of `runs` is an entry of `annotation_runs` or the config of an annotation manifest.
    """
    values: dict[str, list[str]] = {"annotator": [], "prompt": [], "prompt_digest": []}
    for run in runs:
        values["annotator"].append(run["annotator"])
        values["prompt"] += [prompt["name"] for prompt in run.get("prompts", [])]
        values["prompt_digest"] += [prompt["digest"] for prompt in run.get("prompts", [])]
    return {name: ", ".join(dict.fromkeys(texts)) for name, texts in values.items() if texts}


def annotated_documents(manifest: Manifest) -> SourceConfig:
    """The documents whose annotations the aggregated scores come from.

    Raises:
        InputError: the annotations no longer exist, have no text, or name their columns differently.
    """
    sources = [
        SourceConfig.model_validate(ancestor.config["source"])
        for ancestor in ancestors(manifest)
        if ancestor.kind == "annotations" and ancestor.config.get("source")
    ]
    paths = list(dict.fromkeys(path for source in sources for path in source.paths))
    merged = [source.model_copy(update={"paths": paths}) for source in sources]
    if not merged or any(source != merged[0] for source in merged):
        raise InputError(f"{manifest.root} holds scores without text; name their documents with --documents")
    return merged[0]


def criteria_config(criteria: Iterable[Criterion]) -> dict[str, list[dict[str, Any]]]:
    """The entry of a manifest's config that `criteria_of` reads: each criterion once."""
    return {_CRITERIA: [criterion.model_dump() for criterion in dict.fromkeys(criteria)]}


def criteria_of(manifest: Manifest) -> list[Criterion]:
    """The criteria of a directory of annotations or of aggregated scores, in alphabetical order.

    Raises:
        InputError: the manifest does not define them.
    """
    if _CRITERIA not in manifest.config:
        raise InputError(f"{manifest.root} was made by an older version, without criteria; annotate again")
    criteria = [Criterion.model_validate(entry) for entry in manifest.config[_CRITERIA]]
    return sorted(criteria, key=lambda criterion: criterion.name)


def only_criterion(manifest: Manifest, name: str | None) -> Criterion:
    """One criterion of a directory of annotations or of aggregated scores.

    Args:
        name: None: the only one.

    Raises:
        InputError: there are several and none is chosen, or the directory has no criterion of this name.
    """
    criteria = criteria_of(manifest)
    names = ", ".join(criterion.name for criterion in criteria)
    if name is None and len(criteria) > 1:
        raise InputError(f"{manifest.root} has scores of {names}; choose one with --criterion")
    for criterion in criteria:
        if name in (None, criterion.name):
            return criterion
    raise InputError(f"{manifest.root} has no scores of {name!r}; it has {names}")
