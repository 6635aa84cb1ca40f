"""The bill of a whole pipeline: one estimate for each of its annotator runs, and their sum."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from pydantic import BaseModel

from ml_filter.agreement.config import GateConfig
from ml_filter.annotation.annotate import Run, annotator_name, prepare
from ml_filter.annotation.config import AnnotateConfig, EstimateConfig
from ml_filter.annotation.estimate import Estimate, Range, estimate_bill
from ml_filter.config import Settings
from ml_filter.documents.config import SourceConfig
from ml_filter.documents.output_directory import OutputDirectory
from ml_filter.errors import ConfigError
from ml_filter.pipeline.config import AnnotationPipelineConfig, as_gates, golds_of
from ml_filter.prepare.config import SampleConfig
from ml_filter.prepare.sampling import sample_documents

_PIPELINE_OUTPUT = AnnotationPipelineConfig.model_fields["output"].default


def source_to_annotate(parameters: Mapping[str, Any]) -> SourceConfig:
    """What an annotation pipeline's parameters say is annotated: its source or, where it draws one, its sample, which
    is drawn here, where the pipeline then finds it.

    Raises:
        ConfigError: they name no source and no sample.
    """
    if not {"source", "sample"} & parameters.keys():
        raise ConfigError("nothing says what is to be annotated; give DOCS, or a --config with a source or sample")
    source = SourceConfig.model_validate(parameters.get("source", {}))
    if "sample" not in parameters:
        return source
    output = parameters.get("output", _PIPELINE_OUTPUT)
    sample = SampleConfig.model_validate(parameters["sample"])
    return SourceConfig(paths=[sample_documents(source, sample, f"{output}/sample-{{digest}}").root])


class AnnotatorRun(NamedTuple):
    """One annotator over one set of documents; `output`: where its answers go, None: not known before."""

    name: str
    source: SourceConfig
    annotate: AnnotateConfig
    output: str | None


class PipelineBill(BaseModel):
    """The estimates of a pipeline's annotator runs and their sums; None: not known of every run.

    The bounds of a sum are the sums of the bounds, so its interval is wider than it has to be. `most_tokens` and
    `most_usd` are what the budgets allow in all, None where a run has none.
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
    """The runs of an annotation pipeline: `annotate` and each of the jury over the sample and, where there are gates,
    each over their gold as well, once where gates share it.

    Args:
        parameters: of the pipeline.
        annotate: its first annotator.
        output: where the first annotator's answers to the sample go; those of the others go beside it.
        settings: endpoint and key of the environment; read from it when not given.

    Raises:
        ConfigError: the parameters name no source and no sample, or there is no model for an annotator.
    """
    settings = settings or Settings()
    listed = parameters.get("jury") or []
    if not isinstance(listed, list):
        raise ConfigError(f"jury is a list of annotators, each with settings of annotate, and not {listed!r}")
    jury = [AnnotateConfig.model_validate(one) for one in listed]
    names = ["annotate", *(f"jury-{n}" for n in range(1, len(jury) + 1))]
    annotators = dict(zip(names, [annotate, *jury], strict=True))
    documents = source_to_annotate(parameters)
    runs = [
        AnnotatorRun(name, documents, one, output and (output if name == "annotate" else f"{output}-{name}"))
        for name, one in annotators.items()
    ]
    folder = parameters.get("output", _PIPELINE_OUTPUT)
    gates = [GateConfig.model_validate(one) for one in as_gates(parameters.get("gate"))]
    for number, gold in enumerate(golds_of(gates), 1):
        of = "gold" if number == 1 else f"gold-{number}"
        runs += [
            AnnotatorRun(f"{of}-{name}", gold, one, _gold_output(folder, gold, one, settings))
            for name, one in annotators.items()
        ]
    return runs


def _gold_output(folder: str, gold: SourceConfig, annotate: AnnotateConfig, settings: Settings) -> str:
    """Where the pipeline annotates the gold, and so finds the pilot's answers."""
    _, made_by, parents = prepare(Run, gold, annotate, annotator_name(annotate, settings))
    return OutputDirectory(f"{folder}/annotations-{{digest}}", "annotations", made_by, parents).path


def estimate_pipeline(
    runs: Iterable[AnnotatorRun], config: EstimateConfig, settings: Settings | None = None
) -> PipelineBill:
    """A pilot for each run, one after the other, and the sum; raises as `estimate_bill`."""
    runs = list(runs)
    made = {
        run.name: estimate_bill(run.source, run.annotate, config, output=run.output, settings=settings) for run in runs
    }
    sums = {
        name: _sum([getattr(one, name) for one in made.values()])
        for name in ("requests", "prompt_tokens", "completion_tokens", "hours", "usd")
    }
    tokens = [run.annotate.budget_tokens for run in runs]
    usd = [run.annotate.budget_usd for run in runs]
    return PipelineBill.model_validate(
        {
            "runs": made,
            **sums,
            "most_tokens": None if None in tokens else sum(one or 0 for one in tokens),
            "most_usd": None if None in usd else sum(one or 0 for one in usd),
        }
    )


def _sum(ranges: Iterable[Range | None]) -> Range | None:
    known = list(ranges)
    if None in known:
        return None
    parts = {name: [getattr(one, name) for one in known] for name in ("value", "low", "high")}
    return Range(**{name: None if None in values else sum(values) for name, values in parts.items()})
