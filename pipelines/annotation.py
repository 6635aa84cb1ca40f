"""Feature pipeline: from documents to scores."""

from zenml import pipeline
from zenml.enums import ExecutionMode

from ml_filter.documents.manifest import Manifest
from ml_filter.settings import AggregateConfig, AnnotateConfig, SampleConfig, SourceConfig, TrackingConfig
from steps.feature.aggregate_scores import aggregate_scores
from steps.feature.annotate_documents import annotate_documents
from steps.feature.sample_documents import sample_documents
from steps.track_run import track_run


def feature_steps(
    source: SourceConfig, sample: SampleConfig, annotate: AnnotateConfig, aggregate: AggregateConfig, output: str
) -> tuple[Manifest, Manifest, Manifest]:
    """Sample, annotate, aggregate."""
    documents = sample_documents(source, sample, output)
    annotations = annotate_documents(documents, annotate, output)
    return documents, annotations, aggregate_scores(annotations, aggregate, output)


@pipeline(name="annotation", enable_cache=False, execution_mode=ExecutionMode.FAIL_FAST)
def annotation_pipeline(
    source: SourceConfig,
    sample: SampleConfig,
    annotate: AnnotateConfig,
    aggregate: AggregateConfig,
    tracking: TrackingConfig,
    output: str,
) -> None:
    """Sample documents, let an LLM score them, aggregate the votes."""
    documents, annotations, scores = feature_steps(source, sample, annotate, aggregate, output)
    track_run(tracking, sample=documents, annotations=annotations, scores=scores)
