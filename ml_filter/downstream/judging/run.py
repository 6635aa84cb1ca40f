"""The evaluation of a tuned model, stage by stage; every stage is a directory, and a killed run continues in the last.

tasks -> base answers, tuned answers -> pairs -> verdicts, ratings -> judgement.json, report.html
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from ml_filter.annotation.annotate import annotate_documents
from ml_filter.annotation.budget import SharedBudget, total_if_known
from ml_filter.annotation.config import AnnotateConfig, AskConfig
from ml_filter.annotation.connection import annotator_name
from ml_filter.annotation.generate import load_generation_prompt
from ml_filter.annotation.pairwise import ANSWER_FROM, judge_pairs, render_answer
from ml_filter.annotation.prompts import load_prompt
from ml_filter.config import Settings
from ml_filter.documents.config import SourceConfig
from ml_filter.documents.derived import derive_documents, read_rows_of
from ml_filter.documents.lineage import find_source_manifest
from ml_filter.documents.manifest import Manifest, Parent
from ml_filter.documents.output_directory import OutputDirectory
from ml_filter.downstream.benchmarks.measure import Benchmarks
from ml_filter.downstream.judging.answers import answer_tasks
from ml_filter.downstream.judging.benchmarks import benchmark_figures, measure_both
from ml_filter.downstream.judging.config import JudgeConfig
from ml_filter.downstream.judging.contestants import base_settings, tuned_settings
from ml_filter.downstream.judging.figures import MODELS, SAME, JudgedPair, compare, paired_figures, verdict_of
from ml_filter.downstream.judging.references import rouge_scores
from ml_filter.downstream.judging.report import judgement_page
from ml_filter.downstream.judging.result import JUDGEMENT_NAME, REPORT_NAME, Example, Judgement, read_judgement
from ml_filter.downstream.judging.tasks import held_out_tasks
from ml_filter.downstream.tuning.result import TunedModel, read_tuned
from ml_filter.errors import InputError
from ml_filter.statistics.intervals import Figure, Resampling

_PAIRS = pa.schema([(name, pa.string()) for name in ("id", "task", "first", "second")])
_FAMILY = re.compile(r"[-_./: ]|\d")
"""What ends the family in the name of a model."""


def judge_tuned(
    tuned: str | TunedModel,
    config: JudgeConfig,
    output: str,
    data: SourceConfig | None = None,
    settings: Settings | None = None,
) -> tuple[Judgement, Manifest]:
    """Compare a tuned model with its base on held-out tasks.

    Args:
        tuned: directory that `tune` wrote.
        output: directory of the directories of all stages; the judgement is in `judgement-{digest}`.
        data: conversations to take tasks from that the model was not trained on (default: the data of the tuning).

    Raises:
        ConfigError: a model cannot be run here, and no endpoint is configured for it; or a prompt does not exist.
        InputError: there is no tuned model or no held-out task, or the data has changed since the tuning.
        TooManyFailures, EndpointError: see `generate`.
    """
    settings = settings or Settings()
    annotator_name(config.judge, settings)  # what the judge needs is checked before the answers are paid for
    load_generation_prompt(config.prompt, like=["compare_answers"])
    if config.rating_prompt is not None:
        load_prompt(config.rating_prompt)
    model = read_tuned(tuned) if isinstance(tuned, str) else tuned
    benchmarks = Benchmarks(config) if config.has_benchmarks else None
    source = data or model.result.source
    ledgers = f"{output}/ledgers"
    tasks = held_out_tasks(source, model, config.size, config.seed, f"{output}/tasks-{{digest}}")
    if data is None and _digests(tasks) != [parent.digest for parent in model.result.parents]:
        raise InputError(
            f"{', '.join(source.paths)} is not as it was when {model.root} was tuned; to take tasks from what it "
            "has now, name it by --data"
        )
    places = {
        "base": (config.base, base_settings(model, config.base, settings)),
        "tuned": (config.tuned, tuned_settings(model, config.tuned, settings)),
    }
    weights = {"base": model.result.base, "tuned": model.parent}
    directory = f"{output}/answers-{{digest}}"
    answers = {
        name: answer_tasks(tasks, weights[name], config.max_tokens, asked, directory, own, ledgers)
        for name, (asked, own) in places.items()
    }
    pairs = _pairs(tasks, [answers[name] for name in MODELS], f"{output}/pairs-{{digest}}")
    stages = {"tasks": tasks, **answers, "pairs": pairs}
    if pairs.rows:
        verdicts = judge_pairs(pairs, config.prompt, config.judge, output, settings, ledgers=ledgers)
        stages["verdicts"] = verdicts
        if config.rating_prompt is not None:
            budget = SharedBudget(config.judge.budget_tokens, config.judge.budget_usd)
            judge = budget.share(config.judge, *_comparisons(verdicts))
            stages["ratings"] = _rate(pairs, config.rating_prompt, judge, output, settings, ledgers)
    if benchmarks is not None:
        stages |= measure_both(model, benchmarks, f"{output}/lm-eval-{{digest}}", settings)
    parents = [model.parent, *(Parent(path=stage.root, digest=stage.digest) for stage in stages.values())]
    prices = {name: [side.usd(1e6, 0), side.usd(0, 1e6)] for name, side in _sides(config).items()}
    fixed = {**config.model_dump(mode="json", exclude=set(prices)), "prices": prices}
    with OutputDirectory(f"{output}/judgement-{{digest}}", "judgement", fixed, parents) as out:
        if out.manifest:
            return read_judgement(out.manifest), out.manifest
        names = {name: annotator_name(asked, own) for name, (asked, own) in places.items()}
        judgement = _judgement(model, config, stages, names, annotator_name(config.judge, settings))
        judgement.warnings += benchmarks.warnings if benchmarks is not None else []
        if data is not None and tasks.counts["trained_on"]:
            judgement.warnings.append(_reused(tasks.counts))
        out.put_bytes(JUDGEMENT_NAME, (judgement.model_dump_json(indent=1) + "\n").encode())
        out.put_bytes(REPORT_NAME, judgement_page(judgement).encode())
        return judgement, out.finish([], {"tasks": judgement.tasks, **judgement.comparison.verdicts})


def _sides(config: JudgeConfig) -> dict[str, AskConfig]:
    return {"base": config.base, "tuned": config.tuned, "judge": config.judge}


def _reused(counts: Mapping[str, int]) -> str:
    return (
        f"{counts['trained_on']:,} of {counts['read']:,} rows of the data are not used, because the model was trained "
        "on their task or document"
    )


def _digests(tasks: Manifest) -> list[str]:
    return [parent.digest for parent in tasks.parents]


def _pairs(tasks: Manifest, answers: Sequence[Manifest], output: str) -> Manifest:
    """Both answers to each task that both models answered differently; equal answers are counted."""
    parents = [Parent(path=manifest.root, digest=manifest.digest) for manifest in (tasks, *answers)]
    with OutputDirectory(output, "pairs", {}, parents) as out:
        if out.manifest:
            return out.manifest
        counts: Counter[str] = Counter(tasks=0, pairs=0, same=0, unanswered=0)
        with out.new_shard("pairs", _PAIRS) as writer, out.new_rejects("pairs") as rejects:
            rows = zip(*(read_rows_of(manifest, ["id", "text", "answer"]) for manifest in answers), strict=True)
            while batch := list(islice(rows, 1024)):
                pairs = []
                for base, tuned in batch:
                    counts["tasks"] += 1
                    if base["answer"] is None or tuned["answer"] is None:
                        counts["unanswered"] += 1
                    elif base["answer"].strip() == tuned["answer"].strip():
                        counts[SAME] += 1
                    else:
                        values = (base["id"], base["text"], base["answer"], tuned["answer"])
                        pairs.append(dict(zip(_PAIRS.names, values, strict=True)))
                counts["pairs"] += len(pairs)
                writer.write(pa.Table.from_pylist(pairs, schema=_PAIRS))
        return out.finish([("pairs", out.commit("pairs", writer, rejects, counts))])


def _rate(pairs: Manifest, prompt: str, judge: AskConfig, output: str, settings: Settings, ledgers: str) -> Manifest:
    """Annotations of every answer of a pair, as the documents `ID base` and `ID tuned`."""
    documents = derive_documents(pairs, _PAIRS.names, _answers_to_rate, f"{output}/to-rate-{{digest}}")
    annotate = AnnotateConfig.model_validate({**judge.model_dump(), "prompts": [prompt]})
    source = SourceConfig(paths=[documents.root])
    directory = f"{output}/ratings-{{digest}}"
    return annotate_documents(source, annotate, directory, settings, ledgers=ledgers, kept_from=ANSWER_FROM)


def _answers_to_rate(pair: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name, side in zip(MODELS, ("first", "second"), strict=True):
        yield f"{pair['id']} {name}", render_answer(pair["task"], pair[side])


def _judgement(
    model: TunedModel, config: JudgeConfig, stages: dict[str, Manifest], names: dict[str, str], judge: str
) -> Judgement:
    resampling = Resampling(confidence=config.confidence)
    columns = ["id", "task", "first", "second", "verdict", "verdict_ab", "verdict_ba", "verdict_reason"]
    rows = list(read_rows_of(stages["verdicts"], columns)) if "verdicts" in stages else []
    pairs = [
        JudgedPair(
            row["verdict"],
            len(row["first"]),
            len(row["second"]),
            opposed=row["verdict"] == "inconsistent" and "tie" not in (row["verdict_ab"], row["verdict_ba"]),
        )
        for row in rows
    ]
    pairs += [JudgedPair(SAME, 0, 0)] * stages["pairs"].counts.get(SAME, 0)
    won = [stages["verdicts"].counts[name] if "verdicts" in stages else 0 for name in ("won_a", "won_b")]
    comparison = compare(pairs, won[0], won[1], resampling)
    verdict, reason = verdict_of(comparison, config.min_consistency, config.min_pairs)
    prompt_tokens, completion_tokens = _judge_tokens(stages)
    return Judgement(
        verdict=verdict,
        reason=reason,
        warnings=list(_warnings([*names.values(), model.result.base.path], judge, verdict, stages)),
        tuned=model.parent,
        base=model.result.base,
        judge=judge,
        tasks=stages["tasks"].rows,
        failed={name: stages[name].counts["failed"] for name in MODELS},
        cut_off={name: stages[name].counts.get("cut_off", 0) for name in MODELS},
        comparison=comparison,
        figures=_answer_figures(stages, config, resampling)
        | benchmark_figures(stages, resampling)
        | {f"held_out_{name}": figure for name, figure in model.result.figures.items()},
        judge_tokens=prompt_tokens + completion_tokens,
        answer_tokens=sum(sum(_tokens(stages[name])) for name in MODELS),
        usd=config.judge.usd(prompt_tokens, completion_tokens),
        answer_usd=total_if_known(_sides(config)[name].usd(*_tokens(stages[name])) for name in MODELS),
        examples=[
            Example(
                task=row["task"],
                base=row["first"],
                tuned=row["second"],
                verdict=row["verdict"],
                reason=row["verdict_reason"],
            )
            for row in rows[: config.examples]
        ],
        config=config.model_dump(mode="json"),
        stages={name: manifest.root for name, manifest in stages.items()},
    )


def _answer_figures(stages: dict[str, Manifest], config: JudgeConfig, resampling: Resampling) -> dict[str, Figure]:
    """Base, tuned and change of each measure of an answer, paired over the tasks that both models answered."""
    measures: dict[str, list[tuple[float, float]]] = defaultdict(list)
    rows = zip(*(read_rows_of(stages[name], ["reference", "answer"]) for name in MODELS), strict=True)
    for base, tuned in rows:
        if base["answer"] is None or tuned["answer"] is None:
            continue
        measures["characters"].append((len(base["answer"]), len(tuned["answer"])))
        if config.rouge and base["reference"]:
            scores = [rouge_scores(base["reference"], row["answer"]) for row in (base, tuned)]
            for name in scores[0]:
                measures[name].append((scores[0][name], scores[1][name]))
    if "ratings" in stages:
        ratings = {
            row["document_id"]: row["score"] for row in read_rows_of(stages["ratings"], ["document_id", "score"])
        }
        for row in read_rows_of(stages["pairs"], ["id"]):
            base_rating, tuned_rating = (ratings.get(f"{row['id']} {name}") for name in MODELS)
            if base_rating is not None and tuned_rating is not None:
                measures["rating"].append((base_rating, tuned_rating))
    figures: dict[str, Figure] = {}
    for name, values in measures.items():
        figures |= {f"{side}_{name}": figure for side, figure in paired_figures(values, resampling).items()}
    return figures


def _warnings(models: Iterable[str], judge: str, verdict: str, stages: dict[str, Manifest]) -> Iterator[str]:
    if _family(judge) in map(_family, models):
        yield (
            f"the judge {judge} is of the same family as a model that it judges; such judges prefer the style of their "
            "own family (arXiv 2404.13076)"
        )
    if "ratings" in stages and verdict == "no verdict":
        yield "the ratings are by the same judge, whose verdicts are not used"
    if "verdicts" in stages and (cut := stages["verdicts"].counts["truncated"]):
        yield (
            f"the judge saw only the beginning of the task in {cut} of {2 * stages['verdicts'].rows} comparisons; set "
            "judge.tokenizer, or a higher max_text_chars in the prompt"
        )
    unanswered, tasks = stages["pairs"].counts["unanswered"], stages["tasks"].rows
    if unanswered:
        yield f"{unanswered} of {tasks} tasks have no answer of one of the models and are not compared"


def _family(name: str) -> str:
    """The family of a model by its name: llama of meta-llama/Llama-3.3-70B-Instruct."""
    return _FAMILY.split(PurePosixPath(name.lower()).name)[0]


def _comparisons(verdicts: Manifest) -> list[Manifest]:
    """The comparisons that verdicts come from, beside the pairs, which used no tokens."""
    return [source for parent in verdicts.parents if (source := find_source_manifest(parent.path)) is not None]


def _judge_tokens(stages: dict[str, Manifest]) -> tuple[int, int]:
    """Prompt and completion tokens of the comparisons and of the ratings."""
    asked = _comparisons(stages["verdicts"]) if "verdicts" in stages else []
    asked += [stages["ratings"]] if "ratings" in stages else []
    tokens = [_tokens(manifest) for manifest in asked]
    return sum(prompt for prompt, _ in tokens), sum(completion for _, completion in tokens)


def _tokens(manifest: Manifest) -> tuple[int, int]:
    return manifest.counts.get("prompt_tokens", 0), manifest.counts.get("completion_tokens", 0)
