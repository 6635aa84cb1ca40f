"""The cost of an annotation pipeline: an estimate for each of its annotator runs, and their sum."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from pydantic import BaseModel

from ml_filter.annotation.annotate import annotation_plan
from ml_filter.annotation.budget import total_if_known
from ml_filter.annotation.config import AnnotateConfig, EstimateConfig
from ml_filter.annotation.connection import annotator_name
from ml_filter.annotation.estimate import Estimate, Range, estimate_bill
from ml_filter.annotation.run import output_directory
from ml_filter.config import Settings
from ml_filter.documents.config import SourceConfig
from ml_filter.errors import ConfigError
from ml_filter.pipeline.config import AnnotationPipelineConfig, golds_of
from ml_filter.prepare.sampling import sample_documents

_FIGURES = ("requests", "prompt_tokens", "completion_tokens", "hours", "usd")


class AnnotatorRun(NamedTuple):
    """One annotator over one set of documents. `output` is where its answers go, None if that is not known yet."""

    name: str
    source: SourceConfig
    annotate: AnnotateConfig
    output: str | None


class PipelineBill(BaseModel):
    """The estimates of all annotator runs and their sums; a sum is None if any of its figures is unknown.

    The bounds of a sum are the sums of the bounds, which makes its interval wider than necessary. `most_tokens` and
    `most_usd` are the sums of the budgets, None if any run has none.
    """

    runs: dict[str, Estimate]
    requests: Range
    prompt_tokens: Range | None
    completion_tokens: Range | None
    hours: Range | None
    usd: Range | None
    most_tokens: int | None
    most_usd: float | None


def annotator_runs(
    parameters: Mapping[str, Any], annotate: AnnotateConfig, *, output: str | None, settings: Settings | None = None
) -> list[AnnotatorRun]:
    """The annotator runs of an annotation pipeline: each annotator over the sample, and over the gold of the gates.

    `annotate` is the first annotator; the others are the jury in `parameters`, those of the pipeline. `output` is for
    the first annotator's answers about the sample; those of the jury go next to it.

    Raises:
        ConfigError: the parameters have neither a source nor a sample, or an annotator has no model.
        ValidationError: the parameters are not those of a pipeline.
    """
    settings = settings or Settings()
    if not {"source", "sample"} & parameters.keys():
        raise ConfigError("no documents to annotate: give DOCS, or a --config with a source or a sample")
    fields = AnnotationPipelineConfig.model_fields
    known = {name: value for name, value in parameters.items() if name in fields and value is not None}
    pipeline = AnnotationPipelineConfig.model_validate({"sample": {"size": 1}, **known, "annotate": annotate})
    documents = pipeline.source
    if "sample" in known:  # drawn to where the pipeline uses it
        drawn = sample_documents(documents, pipeline.sample, f"{pipeline.output}/sample-{{digest}}")
        documents = SourceConfig(paths=[drawn.root])
    annotators = {f"jury-{number}" if number else "annotate": each for number, each in enumerate(pipeline.annotators)}
    runs = [
        AnnotatorRun(name, documents, config, output and (output if name == "annotate" else f"{output}-{name}"))
        for name, config in annotators.items()
    ]
    for number, gold in enumerate(golds_of(pipeline.gate), 1):
        prefix = "gold" if number == 1 else f"gold-{number}"
        for name, config in annotators.items():
            plan = annotation_plan(gold, config, annotator_name(config, settings))
            # Where the pipeline annotates the gold, so that it finds the answers of the pilot.
            path = output_directory(plan, f"{pipeline.output}/annotations-{{digest}}").path
            runs.append(AnnotatorRun(f"{prefix}-{name}", gold, config, path))
    return runs


def estimate_pipeline(
    runs: Iterable[AnnotatorRun], config: EstimateConfig, settings: Settings | None = None
) -> PipelineBill:
    """Estimate each run with a pilot, one after the other, and add them up; raises as `estimate_bill`."""
    runs = list(runs)
    estimates = {
        run.name: estimate_bill(run.source, run.annotate, config, output=run.output, settings=settings) for run in runs
    }
    sums = {name: _sum([getattr(estimate, name) for estimate in estimates.values()]) for name in _FIGURES}
    tokens, usd = (
        total_if_known(run.annotate.budget_tokens for run in runs),
        total_if_known(run.annotate.budget_usd for run in runs),
    )
    return PipelineBill.model_validate({"runs": estimates, **sums, "most_tokens": tokens, "most_usd": usd})


def _sum(ranges: list[Range | None]) -> Range | None:
    if None in ranges:
        return None
    return Range(
        **{name: total_if_known(getattr(range_, name) for range_ in ranges) for name in ("value", "low", "high")}
    )
