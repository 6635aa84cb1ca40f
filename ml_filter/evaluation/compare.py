"""Two prompts or models side by side on the same documents: their agreement, which is better, where they differ."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq
from pydantic import BaseModel

from ml_filter.agreement.agreement import Agreement, compare_ratings
from ml_filter.agreement.measure import write_agreement
from ml_filter.agreement.ratings import Ratings, read_ratings, require_gold
from ml_filter.annotation.annotate import annotate_documents
from ml_filter.annotation.collecting import FAILED_NAME
from ml_filter.annotation.config import AnnotateConfig
from ml_filter.annotation.connection import annotator_name
from ml_filter.annotation.plan import answer_settings
from ml_filter.annotation.prompts import load_prompt
from ml_filter.config import Settings
from ml_filter.documents.config import SourceConfig
from ml_filter.documents.manifest import Manifest
from ml_filter.documents.output_directory import OutputDirectory
from ml_filter.documents.readers import read_shard
from ml_filter.documents.rejects import RejectsLog
from ml_filter.documents.sources import list_shards
from ml_filter.errors import ConfigError, TooManyFailures
from ml_filter.evaluation.config import CompareConfig
from ml_filter.statistics.intervals import Array, Figure, Resampling
from ml_filter.statistics.metrics import COMPARED_FIGURES
from ml_filter.statistics.pair import compare_against, compare_pair

COMPARISON_NAME = "comparison.json"
REPORT_NAME = "comparison.html"
_EXCERPT_CHARS = 600


class Side(BaseModel):
    """One of the two: who it is, what became of its documents, and what they cost."""

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

    `better` is None where the interval of the difference holds 0, so that chance may have made it.
    """

    figure: str
    a: Figure
    b: Figure
    difference: Figure
    better: Literal["a", "b"] | None


class Example(BaseModel):
    """A document on which the two differ; `gold` is None where there is none."""

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


def compare_annotators(
    source: SourceConfig,
    a: AnnotateConfig,
    b: AnnotateConfig,
    config: CompareConfig,
    output: str | Path,
    settings: Settings | None = None,
) -> tuple[Comparison, Manifest]:
    """Annotate documents twice, into `output/a` and `output/b`, and compare what came of it.

    Writes `comparison.json` and `comparison.html`, and all figures of agreement as `agreement.json` and
    `agreement.html`. Killed and called again, it asks only for what is open.

    Raises:
        ConfigError: a and b are the same, or their prompts score on different ranges.
        TooManyFailures: the comparison is written, and more than `max_failed_share` of one of the two failed; or all
            answers of one failed, and there is none.
        InputError: the gold cannot be read or holds no rating; before anything is asked.
        EndpointError, InputError: as `annotate_documents` and `read_ratings`.
    """
    from ml_filter.evaluation.comparison_page import comparison_report

    settings = settings or Settings()
    both = {"a": a, "b": b}
    made_by = {name: _made_by(one, settings) for name, one in both.items()}
    if made_by["a"] == made_by["b"]:
        raise ConfigError("both sides are the same; give two of --prompt, --model (with --endpoint) or --endpoint")
    _check_ranges(a, b)
    _, parents = list_shards(source)
    require_gold(config)
    gold_parents = list_shards(config.gold)[1] if config.gold else []
    setup = {"source": source.model_dump(mode="json"), **made_by, "compare": config.model_dump(mode="json")}
    with OutputDirectory(output, "comparison", setup, [*parents, *gold_parents]) as out:
        if out.manifest and not (a.retry_failed and out.manifest.counts["failed"]):
            comparison = Comparison.model_validate_json(out.fs.cat_file(f"{out.root}/{COMPARISON_NAME}"))
        else:
            if out.manifest:
                out.reopen()
            manifests = {
                # what failed is part of the comparison, so that it ends only afterwards for that
                name: annotate_documents(
                    source, one.model_copy(update={"max_failed_share": 1.0}), f"{out.path}/{name}", settings
                )
                for name, one in both.items()
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
            out.put_bytes(REPORT_NAME, comparison_report(comparison, plots).encode())
            out.finish([], {"documents": sides[0].documents, "failed": sum(side.failed for side in sides)})
        assert out.manifest
        for side, one in ((comparison.a, a), (comparison.b, b)):
            if side.share_failed > one.max_failed_share:
                raise TooManyFailures(
                    f"{side.failed:,} of {side.scored + side.failed:,} answers of {side.name} failed, more than "
                    f"max_failed_share={one.max_failed_share:g} tolerates; the comparison is in {out.path}. To ask for "
                    "just those again, run again with --retry-failed"
                )
        return comparison, out.manifest


def _require_scores(manifests: Mapping[str, Manifest]) -> None:
    silent = []
    for side, manifest in manifests.items():
        if not manifest.counts["scored"]:
            made_by = f"{manifest.config['annotator']}, {', '.join(one['name'] for one in manifest.config['prompts'])}"
            codes = ", ".join(f"{code} {count:,}" for code, count in _failed_by_code(manifest).items())
            silent.append(
                f"all {manifest.counts['failed']:,} answers of side {side} ({made_by}) failed ({codes}); "
                f"each is in {manifest.root}/{FAILED_NAME}"
            )
    if silent:
        raise TooManyFailures(
            f"there is nothing to compare: {'. And '.join(silent)}. Once what they say is mended, run again with "
            "--retry-failed"
        )


def two_sides(
    common: AnnotateConfig, prompts: Sequence[str], models: Sequence[str], endpoints: Sequence[str]
) -> tuple[AnnotateConfig, AnnotateConfig]:
    """Two configurations: what is given twice tells them apart, what is given once holds for both.

    Raises:
        ConfigError: something is given more than twice.
    """
    given = {"prompt": prompts, "model": models, "endpoint": endpoints}
    for option, values in given.items():
        if len(values) > 2:
            raise ConfigError(f"--{option} is given {len(values)} times; two are compared")

    def side(place: int) -> AnnotateConfig:
        prompt, model, endpoint = (values[place] if values else None for values in given.values())
        changes = {"prompts": prompt and [prompt], "model": model, "endpoints": endpoint and [endpoint]}
        return common.model_copy(update={name: value for name, value in changes.items() if value})

    return side(0), side(-1)


def _made_by(config: AnnotateConfig, settings: Settings) -> dict[str, Any]:
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
            f"{second.score.min:g} to {second.score.max:g}; only scores of one range can be compared"
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
    against = compare_against(rows, score_range=ratings.score_range, threshold=ratings.threshold, resampling=resampling)
    gold, *names = ratings.raters
    alone = [
        compare_pair(
            gold,
            name,
            rows[:, [0, column]],
            score_range=ratings.score_range,
            threshold=ratings.threshold,
            resampling=resampling,
        ).figures
        for column, name in enumerate(names, start=1)
    ]
    return [
        Difference(figure=name, a=alone[0][name], b=alone[1][name], difference=found, better=_better(name, found))
        for name, found in against.items()
    ]


def _better(name: str, difference: Figure) -> Literal["a", "b"] | None:
    if difference.low is None or difference.high is None or difference.low <= 0 <= difference.high:
        return None
    return "b" if (difference.low > 0) == COMPARED_FIGURES[name] else "a"


def _examples(source: SourceConfig, ratings: Ratings, manifests: dict[str, Manifest], most: int) -> list[Example]:
    """The documents on which the two differ most, the widest difference first."""
    apart = np.abs(ratings.values[:, -1] - ratings.values[:, -2])
    places = [int(place) for place in np.argsort(-apart, kind="stable")[:most] if apart[place] > 0]
    wanted = {ratings.documents[place] for place in places}
    reasons = {side: _reasons(manifest, wanted) for side, manifest in manifests.items()}
    texts = _excerpts(source, wanted)
    made = []
    for place in places:
        document_id = ratings.documents[place]
        gold = float(ratings.values[place, 0]) if ratings.has_gold else math.nan
        made.append(
            Example(
                document_id=document_id,
                excerpt=texts.get(document_id, ""),
                gold=None if math.isnan(gold) else gold,
                a=float(ratings.values[place, -2]),
                b=float(ratings.values[place, -1]),
                reason_a=reasons["a"].get(document_id),
                reason_b=reasons["b"].get(document_id),
            )
        )
    return made


def _reasons(manifest: Manifest, wanted: set[str]) -> dict[str, str]:
    """What the first vote on each document that has a reason says."""
    found: dict[str, str] = {}
    for path in manifest.shard_paths():
        for batch in pq.ParquetFile(path).iter_batches(columns=["document_id", "reason"]):
            for document_id, reason in zip(
                *(batch[name].to_pylist() for name in ("document_id", "reason")), strict=True
            ):
                if document_id in wanted and reason:
                    found.setdefault(document_id, reason)
    return found


def _excerpts(source: SourceConfig, wanted: set[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for shard in list_shards(source)[0]:
        for table in read_shard(shard, source, RejectsLog()):
            for document_id, text in zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True):
                if document_id in wanted and document_id not in found:
                    found[document_id] = text if len(text) <= _EXCERPT_CHARS else text[:_EXCERPT_CHARS] + " …"
        if len(found) == len(wanted):
            break
    return found
