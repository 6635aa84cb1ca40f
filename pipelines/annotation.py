"""Feature pipeline: from documents to scores, and to a labelled data set."""

from typing import Any, NamedTuple

from zenml import pipeline
from zenml.enums import ExecutionMode

from ml_filter.agreement.config import AggregateConfig, GateConfig
from ml_filter.annotation.config import AnnotateConfig
from ml_filter.config import names_of
from ml_filter.documents.config import SourceConfig
from ml_filter.documents.manifest import Manifest
from ml_filter.pipeline.config import golds_of
from ml_filter.prepare.config import DecontaminateConfig, DeduplicateConfig, SampleConfig
from ml_filter.publishing.config import PublishConfig
from ml_filter.tracking import TrackingConfig
from steps.feature.aggregate_scores import aggregate_scores
from steps.feature.annotate_documents import annotate_documents
from steps.feature.decontaminate_documents import decontaminate_documents
from steps.feature.deduplicate_documents import deduplicate_documents
from steps.feature.gate_on_agreement import gate_on_agreement
from steps.feature.publish_labels import publish_labels
from steps.feature.sample_documents import sample_documents
from steps.track_run import track_run


class Features(NamedTuple):
    """What the feature steps make: the sample, its annotations by the first annotator, and the aggregated scores."""

    sample: Manifest
    annotations: Manifest
    scores: Manifest


def feature_steps(
    source: SourceConfig,
    sample: SampleConfig,
    deduplicate: DeduplicateConfig | None,
    decontaminate: DecontaminateConfig | None,
    annotate: AnnotateConfig,
    jury: list[AnnotateConfig],
    aggregate: AggregateConfig,
    gate: list[GateConfig],
    publish: PublishConfig | None,
    output: str,
) -> Features:
    """Sample and clean documents, annotate, aggregate, publish. Where there are gates, the gold documents are
    annotated first, and the sample only if the scores of the gold pass, so that a bad annotator costs no more."""
    sampled = documents = sample_documents(source, sample, output)
    if deduplicate is not None:
        documents = deduplicate_documents(documents, deduplicate, output)
    if decontaminate is not None:
        documents = decontaminate_documents(documents, decontaminate, output)
    passed = gate_steps(gate, [annotate, *jury], aggregate, output)
    annotations = [
        annotate_documents(one, output, documents=documents, id=f"annotate_documents_{n}", after=passed or None)
        for n, one in enumerate([annotate, *jury], 1)
    ]
    scores = aggregate_scores(annotations, aggregate, output)
    if publish is not None:
        published = names_of(publish.criterion)
        gates = [
            one
            for one, of in zip(passed, gate, strict=True)
            if not published or of.criterion is None or of.criterion in published
        ]
        publish_labels(scores, documents, publish, output, gates=gates)
    return Features(sampled, annotations[0], scores)


def gate_steps(
    gates: list[GateConfig], annotators: list[AnnotateConfig], aggregate: AggregateConfig, output: str
) -> list[Any]:
    """Annotate the gold documents, once where gates share them, and stop the run where a gate does not let it pass."""
    of_gold = {"of": "gold_"}
    golds, scores = golds_of(gates), []
    for before, gold in enumerate(golds):
        annotations = [
            annotate_documents.with_options(substitutions=of_gold)(
                one, output, source=gold, id=f"annotate_gold_{before * len(annotators) + n}"
            )
            for n, one in enumerate(annotators, 1)
        ]
        name = f"aggregate_gold_{before + 1}" if before else "aggregate_gold"
        scores.append(aggregate_scores.with_options(substitutions=of_gold)(annotations, aggregate, output, id=name))
    return [gate_on_agreement(scores[golds.index(gate.gold)], gate, output) for gate in gates]


@pipeline(name="annotation", enable_cache=False, execution_mode=ExecutionMode.FAIL_FAST)
def annotation_pipeline(
    source: SourceConfig,
    sample: SampleConfig,
    deduplicate: DeduplicateConfig | None,
    decontaminate: DecontaminateConfig | None,
    annotate: AnnotateConfig,
    jury: list[AnnotateConfig],
    aggregate: AggregateConfig,
    gate: list[GateConfig],
    publish: PublishConfig | None,
    tracking: TrackingConfig,
    output: str,
) -> None:
    """Sample documents, let LLMs score them, check the scores against human gold, publish a labelled data set."""
    made = feature_steps(source, sample, deduplicate, decontaminate, annotate, jury, aggregate, gate, publish, output)
    track_run(tracking, sample=made.sample, annotations=made.annotations, scores=made.scores)
