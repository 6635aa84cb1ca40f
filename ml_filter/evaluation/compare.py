"""Compare two prompts or models on the same documents: their agreement, which is better, and where they differ."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel

from ml_filter.agreement.agreement import Agreement, compare_ratings, write_agreement
from ml_filter.agreement.ratings import Ratings, read_ratings, require_gold
from ml_filter.annotation.annotate import annotate_documents
from ml_filter.annotation.config import AnnotateConfig
from ml_filter.annotation.connection import annotator_name
from ml_filter.annotation.plan import answer_settings
from ml_filter.annotation.prompts import load_prompt
from ml_filter.annotation.run import FAILED_NAME
from ml_filter.config import Settings
from ml_filter.documents.config import SourceConfig
from ml_filter.documents.manifest import Manifest
from ml_filter.documents.output_directory import OutputDirectory
from ml_filter.documents.readers import read_tables
from ml_filter.documents.result import read_result
from ml_filter.documents.sources import list_shards
from ml_filter.documents.unique import find_documents
from ml_filter.errors import ConfigError, TooManyFailures
from ml_filter.evaluation.config import CompareConfig
from ml_filter.evaluation.result import excerpt_of
from ml_filter.rendering.html import render
from ml_filter.statistics.agreement import pair_figures
from ml_filter.statistics.intervals import Array, Figure, Resampling
from ml_filter.statistics.metrics import COMPARED_FIGURES, PAIR_FIGURES
from ml_filter.statistics.rounding import round_scores

COMPARISON_NAME = "comparison.json"
REPORT_NAME = "comparison.html"


class Side(BaseModel):
    """One of the two annotators, how many of its documents were scored, and what they cost."""

    name: str
    annotator: str
    prompts: list[str]
    directory: str
    documents: int
    scored: int
    failed: int
    share_failed: float
    failed_by_code: dict[str, int]
    prompt_tokens: int
    completion_tokens: int
    usd: float | None


class Difference(BaseModel):
    """A figure of a and of b against gold, over the documents that all three scored, and b's minus a's.

    `better` is None if the interval of the difference includes 0.
    """

    figure: str
    a: Figure
    b: Figure
    difference: Figure
    better: Literal["a", "b"] | None


class Example(BaseModel):
    """A document on which the two differ; `gold` is None without gold."""

    document_id: str
    excerpt: str
    gold: float | None
    a: float
    b: float
    reason_a: str | None
    reason_b: str | None


class Comparison(BaseModel):
    """The content of comparison.json. `differences` is empty without gold."""

    a: Side
    b: Side
    gold: str | None
    differences: list[Difference]
    examples: list[Example]
    agreement: Agreement


_EXCERPT_CHARS = 600


def compare_annotators(
    source: SourceConfig,
    a: AnnotateConfig,
    b: AnnotateConfig,
    config: CompareConfig,
    output: str | Path,
    settings: Settings | None = None,
) -> tuple[Comparison, Manifest]:
    """Annotate documents twice, into `output/a` and `output/b`, and compare the annotations.

    Writes `comparison.json`, `comparison.html`, `agreement.json` and `agreement.html`. The run is resumable.

    Raises:
        ConfigError: a and b are the same, or their prompts score on different ranges.
        TooManyFailures: more than `max_failed_share` of the answers of one of the two failed (the comparison is
            written), or all of them (it is not).
        EndpointError, InputError: as `annotate_documents` and `read_ratings`; the gold is checked before any request.
    """
    settings = settings or Settings()
    both = {"a": a, "b": b}
    identities = {side: _identity(annotate, settings) for side, annotate in both.items()}
    if identities["a"] == identities["b"]:
        raise ConfigError("both sides are the same; give --prompt, --model or --endpoint twice")
    _check_ranges(a, b)
    _, parents = list_shards(source)
    require_gold(config)
    gold_parents = list_shards(config.gold)[1] if config.gold else []
    setup = {"source": source.model_dump(mode="json"), **identities, "compare": config.model_dump(mode="json")}
    with OutputDirectory(output, "comparison", setup, [*parents, *gold_parents]) as out:
        if out.manifest and not (a.retry_failed and out.manifest.counts["failed"]):
            comparison = read_result(out.manifest, COMPARISON_NAME, Comparison, "ml-filter compare")
        else:
            if out.manifest:
                out.reopen()
            manifests = {
                # failures are part of the comparison; max_failed_share is checked after it is written
                side: annotate_documents(
                    source, annotate.model_copy(update={"max_failed_share": 1.0}), f"{out.path}/{side}", settings
                )
                for side, annotate in both.items()
            }
            _require_scores(manifests)
            ratings, _ = read_ratings([manifest.root for manifest in manifests.values()], config)
            agreement = compare_ratings(ratings, config)
            names = ratings.raters[-2:]
            sides = [_side(name, manifests[side], both[side]) for name, side in zip(names, ("a", "b"), strict=True)]
            comparison = Comparison(
                a=sides[0],
                b=sides[1],
                gold=agreement.gold,
                differences=_differences(ratings, config) if ratings.has_gold else [],
                examples=_examples(source, ratings, manifests, config.examples),
                agreement=agreement,
            )
            plots = write_agreement(out, agreement, ratings)
            out.put_bytes(COMPARISON_NAME, (comparison.model_dump_json(indent=1) + "\n").encode())
            page = render("evaluation/templates/comparison.html", c=comparison, plots=plots, names=PAIR_FIGURES)
            out.put_bytes(REPORT_NAME, page.encode())
            out.finish([], {"documents": sides[0].documents, "failed": sum(side.failed for side in sides)})
        assert out.manifest
        for side, annotate in ((comparison.a, a), (comparison.b, b)):
            if side.share_failed > annotate.max_failed_share:
                raise TooManyFailures(
                    f"{side.failed:,} of {side.scored + side.failed:,} answers of {side.name} failed, more than "
                    f"max_failed_share={annotate.max_failed_share:g} allows; the comparison is in {out.path}. Use "
                    "--retry-failed to repeat the failed requests"
                )
        return comparison, out.manifest


def _require_scores(manifests: Mapping[str, Manifest]) -> None:
    problems = []
    for side, manifest in manifests.items():
        if not manifest.counts["scored"]:
            prompts = ", ".join(prompt["name"] for prompt in manifest.config["prompts"])
            codes = ", ".join(f"{code} {count:,}" for code, count in _failed_by_code(manifest).items())
            problems.append(
                f"all {manifest.counts['failed']:,} answers of side {side} ({manifest.config['annotator']}, {prompts}) "
                f"failed ({codes}); see {manifest.root}/{FAILED_NAME}"
            )
    if problems:
        raise TooManyFailures(
            f"there is nothing to compare: {'; '.join(problems)}. Fix the cause, then run again with --retry-failed"
        )


def two_sides(
    common: AnnotateConfig, prompts: Sequence[str], models: Sequence[str], endpoints: Sequence[str]
) -> tuple[AnnotateConfig, AnnotateConfig]:
    """Two configurations: an option with two values differs between them.

    Raises:
        ConfigError: an option has more than two values.
    """
    options = {"prompt": prompts, "model": models, "endpoint": endpoints}
    for option, values in options.items():
        if len(values) > 2:
            raise ConfigError(f"--{option} has {len(values)} values; only two can be compared")

    def side(index: int) -> AnnotateConfig:
        prompt, model, endpoint = (values[index] if values else None for values in options.values())
        changes = {"prompts": prompt and [prompt], "model": model, "endpoints": endpoint and [endpoint]}
        return common.model_copy(update={name: value for name, value in changes.items() if value})

    return side(0), side(-1)


def _identity(config: AnnotateConfig, settings: Settings) -> dict[str, Any]:
    """What determines the answers of a side."""
    prompts = [load_prompt(name).digest for name in config.prompts]
    return {
        "prompts": prompts,
        "annotator": annotator_name(config, settings),
        **config.model_dump(mode="json", include={"endpoints"}),
        **answer_settings(config),
    }


def _check_ranges(a: AnnotateConfig, b: AnnotateConfig) -> None:
    first, second = (load_prompt(config.prompts[0]) for config in (a, b))
    if first.score != second.score:
        raise ConfigError(
            f"{first.name} scores from {first.score.min:g} to {first.score.max:g}, {second.name} from "
            f"{second.score.min:g} to {second.score.max:g}; only scores on the same range can be compared"
        )


def _side(name: str, manifest: Manifest, config: AnnotateConfig) -> Side:
    counts = manifest.counts
    answers = counts["scored"] + counts["failed"]
    return Side(
        name=name,
        annotator=manifest.config["annotator"],
        prompts=[prompt["name"] for prompt in manifest.config["prompts"]],
        directory=manifest.root,
        documents=counts["documents"],
        scored=counts["scored"],
        failed=counts["failed"],
        share_failed=counts["failed"] / answers,
        failed_by_code=_failed_by_code(manifest),
        prompt_tokens=counts["prompt_tokens"],
        completion_tokens=counts["completion_tokens"],
        usd=config.usd(counts["prompt_tokens"], counts["completion_tokens"]),
    )


def _failed_by_code(manifest: Manifest) -> dict[str, int]:
    return {key[len("failed_") :]: n for key, n in manifest.counts.items() if key.startswith("failed_")}


def _differences(ratings: Ratings, config: CompareConfig) -> list[Difference]:
    resampling = Resampling(confidence=config.confidence, resamples=config.resamples, seed=config.seed)
    rows: Array = ratings.values[np.isfinite(ratings.values).all(axis=1)]
    rounded = round_scores(rows, *(ratings.score_range or ()))
    a, b, differences = (
        pair_figures(rows[:, columns], rounded[:, columns], ratings.threshold, resampling)[0]
        for columns in ([0, 1], [0, 2], [0, 1, 2])
    )
    return [
        Difference(figure=name, a=a[name], b=b[name], difference=figure, better=_better(name, figure))
        for name, figure in ((name, differences[name]) for name in COMPARED_FIGURES)
    ]


def _better(name: str, difference: Figure) -> Literal["a", "b"] | None:
    if difference.low is None or difference.high is None or difference.low <= 0 <= difference.high:
        return None
    return "b" if (difference.low > 0) == COMPARED_FIGURES[name] else "a"


def _examples(source: SourceConfig, ratings: Ratings, manifests: dict[str, Manifest], most: int) -> list[Example]:
    """The documents on which the two differ, the largest difference first."""
    gold, a, b = (ratings.values[:, 0] if ratings.has_gold else None), ratings.values[:, -2], ratings.values[:, -1]
    distance = np.abs(b - a)
    rows = [int(row) for row in np.argsort(-distance, kind="stable")[:most] if distance[row] > 0]
    ids = {ratings.documents[row] for row in rows}
    reasons = {side: _reasons(manifest, ids) for side, manifest in manifests.items()}
    excerpts = _excerpts(source, ids)
    return [
        Example(
            document_id=document_id,
            excerpt=excerpts.get(document_id, ""),
            gold=None if gold is None or math.isnan(gold[row]) else float(gold[row]),
            a=float(a[row]),
            b=float(b[row]),
            reason_a=reasons["a"].get(document_id),
            reason_b=reasons["b"].get(document_id),
        )
        for row, document_id in ((row, ratings.documents[row]) for row in rows)
    ]


def _reasons(manifest: Manifest, ids: set[str]) -> dict[str, str]:
    reasons: dict[str, str] = {}
    for path in manifest.shard_paths():
        for table in read_tables(path, ("document_id", "reason")):
            for document_id, reason in zip(table["document_id"].to_pylist(), table["reason"].to_pylist(), strict=True):
                if document_id in ids and reason:
                    reasons.setdefault(document_id, reason)
    return reasons


def _excerpts(source: SourceConfig, ids: set[str]) -> dict[str, str]:
    excerpts: dict[str, str] = {}
    for table in find_documents(list_shards(source)[0], source, ids):
        for document_id, text in zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True):
            if document_id in ids and document_id not in excerpts:
                excerpts[document_id] = excerpt_of(text, _EXCERPT_CHARS)
        if len(excerpts) == len(ids):
            break
    return excerpts
