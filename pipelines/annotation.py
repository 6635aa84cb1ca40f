"""Feature pipeline: from documents to scores, and to a labelled data set."""

from typing import Any, NamedTuple

from zenml import pipeline

from ml_filter.config import names_of
from ml_filter.documents.manifest import Manifest
from ml_filter.pipeline.config import AnnotationPipelineConfig, check_criteria, golds_of, held_out_documents
from ml_filter.prepare.new_documents import SampledSoFar
from steps.export_to_warehouse import export_to_warehouse
from steps.feature.aggregate_scores import aggregate_scores
from steps.feature.annotate_documents import annotate_documents
from steps.feature.decontaminate_documents import decontaminate_documents
from steps.feature.deduplicate_documents import deduplicate_documents
from steps.feature.gate_on_agreement import gate_on_agreement
from steps.feature.publish_labels import publish_labels
from steps.feature.sample_documents import sample_documents
from steps.track_run import track_run


class Features(NamedTuple):
    """Results of the feature steps: the sample, the annotations of the first annotator, and the aggregated scores."""

    sample: Manifest
    annotations: Manifest
    scores: Manifest


def feature_steps(
    config: AnnotationPipelineConfig, sampled: Manifest | None = None, earlier: SampledSoFar | None = None
) -> Features:
    """Sample and clean documents, annotate, aggregate, publish; without a sample of the pipeline's own, draw one.

    Gates come before the annotation of the sample, so that a bad annotator costs no more than their gold.
    """
    check_criteria(config)
    if sampled is None:
        sampled = sample_documents(config.source, config.sample, config.output)
    documents = sampled
    if config.deduplicate is not None:
        documents = deduplicate_documents(documents, config.deduplicate, config.output)
    if (held_out := held_out_documents(config)) is not None:
        documents = decontaminate_documents(documents, held_out, config.output)
    gates = gate_steps(config)
    annotations = [
        annotate_documents(
            annotator, config.output, documents=documents, id=f"annotate_documents_{number}", after=gates or None
        )
        for number, annotator in enumerate(config.annotators, 1)
    ]
    scores = aggregate_scores(annotations, config.aggregate, config.output, earlier)
    if config.publish is not None:
        publish_labels(scores, documents, config.publish, config.output, gates=_published(gates, config))
    if config.warehouse is not None:
        locations = config.warehouse.model_dump(include={"annotations", "scores"}, exclude_none=True)
        export_to_warehouse(locations, annotations, scores, id="export_labels")
    return Features(sampled, annotations[0], scores)


def gate_steps(config: AnnotationPipelineConfig) -> list[Any]:
    """Annotate the gold, once where gates share it, and stop the run if a gate does not pass."""
    gold_names = {"of": "gold_"}
    golds, scores = golds_of(config.gate), []
    for index, gold in enumerate(golds):
        annotations = [
            annotate_documents.with_options(substitutions=gold_names)(
                annotator, config.output, source=gold, id=f"annotate_gold_{index * len(config.annotators) + number}"
            )
            for number, annotator in enumerate(config.annotators, 1)
        ]
        name = f"aggregate_gold_{index + 1}" if index else "aggregate_gold"
        aggregate = aggregate_scores.with_options(substitutions=gold_names)
        scores.append(aggregate(annotations, config.aggregate, config.output, id=name))
    return [gate_on_agreement(scores[golds.index(gate.gold)], gate, config.output) for gate in config.gate]


def _published(gates: list[Any], config: AnnotationPipelineConfig) -> list[Any]:
    """The gates of the criteria that are published."""
    criteria = {*names_of(config.publish.criterion if config.publish else None)}
    return [
        gate
        for gate, settings in zip(gates, config.gate, strict=True)
        if not criteria or settings.criterion is None or settings.criterion in criteria
    ]


@pipeline(name="annotation", enable_cache=False)
def annotation_pipeline(config: AnnotationPipelineConfig) -> None:
    """Sample documents, let LLMs score them, check the scores against human gold, publish a labelled data set."""
    features = feature_steps(config)
    track_run(config.tracking, **features._asdict())
