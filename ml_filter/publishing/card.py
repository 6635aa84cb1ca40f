"""The data card of a labelled data set: README.md with the Hub's YAML header."""

from __future__ import annotations

import re
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
from ml_filter.statistics.intervals import Figure
from ml_filter.statistics.metrics import GROUP_FIGURES, PAIR_FIGURES

CARD_NAME = "README.md"
_PAIRS = ("spearman", "kappa_quadratic", "exact_agreement", "agreement_at_threshold")
_SAMPLING = ("temperature", "top_p", "seed", "extra_body", "structured", "chat_template", "context_tokens")
_WINDOWS = ("max_windows", "combine_windows")
_GROUP = ("alpha_ordinal", "alpha_interval", "icc_2_1")


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
    """The text of the card.

    Args:
        config: title, license, shares.
        criteria: what the scores are of.
        scores: of the aggregated scores.
        parents: what the data set was made from.
        by_split: documents by rounded score, for each criterion and split that is not empty.
        counts: documents read, left out and grouped.
        agreements: figures to state.
        columns: of the data set.
    """
    title = config.title or f"Documents labelled for {', '.join(criteria).replace('_', ' ')}"
    splits = list(next(iter(by_split.values())))
    header = {
        "license": config.license,
        "pretty_name": title,
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": name, "path": f"data/{name}-*.parquet"} for name in splits],
            }
        ],
    }
    runs = _runs(scores, criteria)
    behind = {made.digest: made for made in [scores, *ancestors(scores)]}
    kinds = {digest: made.kind for digest, made in behind.items()}
    lineage = {**kinds, **{p.digest: kinds.get(p.digest, "input") for p in parents}}
    return render_card(
        "data_card.md",
        header=yaml.safe_dump(header, sort_keys=False, allow_unicode=True).strip(),
        title=title,
        config=config,
        criteria=criteria,
        runs=runs,
        prompts={prompt["digest"]: prompt for run in runs for prompt in run["prompts"]},
        method=scores.config["method"],
        use=scores.config["use"],
        classes={one: sorted({name for of in splits.values() for name in of}) for one, splits in by_split.items()},
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
    """The annotation runs, each with its sampling settings in words and the text of its prompts; None: not kept."""
    manifests = [made for made in ancestors(scores) if made.kind == "annotations"]
    runs = []
    for made, run in zip(manifests, annotation_runs(scores), strict=True):
        names = _SAMPLING + ("long_documents", *_WINDOWS) * (made.config.get("long_documents") == "windows")
        settings = {name.replace("_", " "): made.config.get(name) for name in names}
        said = ", ".join(f"{name} {value}" for name, value in settings.items() if value not in (None, {}))
        asked = [prompt for prompt in run["prompts"] if prompt["criterion"] in criteria]
        prompts = [{**prompt, "kept": _kept_text(made, prompt)} for prompt in asked]
        runs.append({**run, "settings": said, "prompts": prompts})
    return runs


def _kept_text(made: Manifest, prompt: Mapping[str, Any]) -> str | None:
    try:
        with fsspec.open(made.path_of(kept_prompt(prompt["name"], prompt["digest"])), "rb") as file:
            return str(file.read().decode()).strip()
    except FileNotFoundError:  # converted, or of an older version
        return None


def fenced(text: str) -> str:
    """Text as a block of code in Markdown, whatever stands in it."""
    longest = max(map(len, re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}yaml\n{text}\n{fence}"


def render_card(template: str, **values: Any) -> str:
    """A card from its template; a value that the template misses is an error."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ml_filter.publishing"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # Markdown, not HTML
    )
    environment.filters["fenced"] = fenced
    environment.filters["cell"] = lambda value: " ".join(str(value).replace("|", "\\|").split())
    return environment.get_template(template).render(figure=figure_text, **values)


def figure_text(figure: Figure) -> str:
    """The figure with its interval, or why there is none."""
    if figure.value is None:
        return f"- ({figure.reason})"
    return f"{figure.value:.3f}" + ("" if figure.low is None else f" [{figure.low:.3f}, {figure.high:.3f}]")
