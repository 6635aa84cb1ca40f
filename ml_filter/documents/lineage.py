"""What lies behind a directory: the runs that made it, the prompts and judges of its scores, the documents' texts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from ml_filter.criterion import Criterion
from ml_filter.documents.config import SourceConfig
from ml_filter.documents.manifest import Manifest, find_manifest
from ml_filter.errors import InputError, MlFilterError

_CRITERIA = "criteria"


def ancestors(manifest: Manifest) -> Iterator[Manifest]:
    """The directories that a directory was made from, nearest first, as far as they are still there unchanged."""
    for parent in manifest.parents:
        found = manifest_behind(parent.path)
        if found is not None and found.digest == parent.digest:
            yield found
            yield from ancestors(found)


def manifest_behind(path: str) -> Manifest | None:
    """The manifest of a path that may name any source; None where there is none, or its store cannot be reached.

    Raises:
        InputError: the file is there but is no manifest this version reads.
    """
    if path.startswith("hf:") or path.endswith(":"):  # a data set of the Hub, installed documents
        return None
    try:
        return find_manifest(path)
    except MlFilterError:
        raise
    except Exception:  # of some client's own kind; who reads the documents says why
        return None


def annotation_runs(manifest: Manifest, criterion: str | None = None) -> list[dict[str, Any]]:
    """Who made the scores: annotator, votes and prompts of each annotation run behind them.

    Args:
        manifest: of aggregated scores, or of what was made from them.
        criterion: only the prompts of this criterion.

    Returns:
        A dict for each run. Each of its `prompts` has the score range and the threshold of its criterion.
    """
    runs = []
    for run in ancestors(manifest):
        if run.kind == "annotations":
            defined = {criterion.name: criterion for criterion in criteria_of(run)}
            prompts = [
                {
                    **prompt,
                    "score_range": list(defined[prompt["criterion"]].bounds),
                    "threshold": defined[prompt["criterion"]].threshold,
                }
                for prompt in run.config["prompts"]
                if criterion in (None, prompt["criterion"])
            ]
            runs.append({**{key: run.config.get(key) for key in ("annotator", "votes")}, "prompts": prompts})
    return runs


def made_by(runs: Iterable[dict[str, Any]]) -> dict[str, str]:
    """The judges and prompts of annotation runs in words: `annotator`, `prompt`, `prompt_digest`, comma-separated.

    Each of `runs` is an entry of `annotation_runs` or the config of an annotation manifest.
    """
    found: dict[str, list[str]] = {"annotator": [], "prompt": [], "prompt_digest": []}
    for run in runs:
        found["annotator"].append(run["annotator"])
        prompts = run.get("prompts", [])  # heads of older versions say less of their labels
        found["prompt"] += [prompt["name"] for prompt in prompts]
        found["prompt_digest"] += [prompt["digest"] for prompt in prompts]
    return {name: ", ".join(dict.fromkeys(values)) for name, values in found.items() if values}


def annotated_documents(manifest: Manifest) -> SourceConfig:
    """The documents that the annotations behind aggregated scores are about.

    Raises:
        InputError: the annotations are gone, have no text, or name their columns differently.
    """
    sources = [
        SourceConfig.model_validate(made.config["source"])
        for made in ancestors(manifest)
        if made.kind == "annotations" and made.config.get("source")
    ]
    paths = list(dict.fromkeys(path for source in sources for path in source.paths))
    merged = [source.model_copy(update={"paths": paths}) for source in sources]
    if not merged or any(source != merged[0] for source in merged):
        raise InputError(
            f"{manifest.root} holds scores without text; give the documents they belong to with --documents"
        )
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
