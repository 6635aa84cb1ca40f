"""The data card of a labelled data set: README.md with the Hub's YAML header."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import fsspec
import yaml

from ml_filter import __version__
from ml_filter.agreement.agreement import Agreement
from ml_filter.annotation.prompts import kept_prompt
from ml_filter.documents.lineage import ancestors, annotation_runs
from ml_filter.documents.manifest import Manifest, Parent
from ml_filter.publishing.config import PublishConfig
from ml_filter.rendering.html import render_text
from ml_filter.statistics.metrics import GROUP_FIGURES, PAIR_FIGURES

CARD_NAME = "README.md"
_PAIRS = ("spearman", "kappa_quadratic", "exact_agreement", "agreement_at_threshold")
_GROUP = ("alpha_ordinal", "alpha_interval", "icc_2_1")
_SAMPLING = ("temperature", "top_p", "seed", "extra_body", "structured", "chat_template", "context_tokens")
_WINDOWS = ("long_documents", "max_windows", "combine_windows")


def write_card(
    config: PublishConfig,
    criteria: Sequence[str],
    scores: Manifest,
    parents: Sequence[Parent],
    by_split: Mapping[str, Mapping[str, Mapping[int, int]]],
    counts: Mapping[str, int],
    agreements: Sequence[Agreement],
    columns: Sequence[str],
) -> str:
    """Return the text of the card.

    `by_split` has the number of documents with each rounded score, by criterion and by split that is not empty.
    """
    title = config.title or f"Documents labelled for {', '.join(criteria).replace('_', ' ')}"
    data_files = [{"split": name, "path": f"data/{name}-*.parquet"} for name in next(iter(by_split.values()))]
    header = {
        "license": config.license,
        "pretty_name": title,
        "configs": [{"config_name": "default", "data_files": data_files}],
    }
    runs = _runs(scores, criteria)
    kinds = {manifest.digest: manifest.kind for manifest in [scores, *ancestors(scores)]}
    lineage = {**kinds, **{parent.digest: kinds.get(parent.digest, "input") for parent in parents}}
    return render_text(
        "publishing/templates/data_card.md",
        header=yaml.safe_dump(header, sort_keys=False, allow_unicode=True).strip(),
        title=title,
        config=config,
        criteria=criteria,
        runs=runs,
        prompts={prompt["digest"]: prompt for run in runs for prompt in run["prompts"]},
        method=scores.config["method"],
        use=scores.config["use"],
        classes={name: sorted(set().union(*splits.values())) for name, splits in by_split.items()},
        by_split=by_split,
        counts=counts,
        agreements=agreements,
        pair_names={name: PAIR_FIGURES[name] for name in _PAIRS},
        group_names={name: GROUP_FIGURES[name].partition(":")[0] for name in _GROUP},
        columns=columns,
        lineage=lineage,
        code_version=__version__,
    )


def _runs(scores: Manifest, criteria: Sequence[str]) -> list[dict[str, Any]]:
    """The annotation runs, each with its sampling settings and prompts; a prompt's text is None if it was not kept."""
    manifests = [manifest for manifest in ancestors(scores) if manifest.kind == "annotations"]
    runs = []
    for manifest, run in zip(manifests, annotation_runs(scores), strict=True):
        names = _SAMPLING + _WINDOWS * (manifest.config.get("long_documents") == "windows")
        values = {name.replace("_", " "): manifest.config.get(name) for name in names}
        settings = ", ".join(f"{name} {value}" for name, value in values.items() if value not in (None, {}))
        prompts = [
            {**prompt, "text": _prompt_text(manifest, prompt)}
            for prompt in run["prompts"]
            if prompt["criterion"] in criteria
        ]
        runs.append({**run, "settings": settings, "prompts": prompts})
    return runs


def _prompt_text(annotations: Manifest, prompt: Mapping[str, Any]) -> str | None:
    try:
        with fsspec.open(annotations.path_of(kept_prompt(prompt["name"], prompt["digest"])), "rb") as file:
            return str(file.read().decode()).strip()
    except FileNotFoundError:  # annotations that were converted from another tool have no prompt files
        return None
