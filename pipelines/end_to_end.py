"""The whole way: from documents to a filtered corpus."""

from zenml import pipeline
from zenml.enums import ExecutionMode

from ml_filter.agreement.config import AggregateConfig, GateConfig
from ml_filter.annotation.config import AnnotateConfig
from ml_filter.documents.config import SourceConfig
from ml_filter.heads.config import TrainConfig
from ml_filter.prepare.config import DecontaminateConfig, DeduplicateConfig, SampleConfig
from ml_filter.publishing.config import PublishConfig
from ml_filter.scoring.config import ScoreConfig
from ml_filter.selection.config import FilterConfig
from ml_filter.tracking import TrackingConfig
from pipelines.annotation import feature_steps
from pipelines.scoring import inference_steps
from steps.inference.write_report import write_report
from steps.track_run import track_run
from steps.training.train_head import train_head


@pipeline(name="end_to_end", enable_cache=False, execution_mode=ExecutionMode.FAIL_FAST)
def end_to_end_pipeline(
    source: SourceConfig,
    sample: SampleConfig,
    deduplicate: DeduplicateConfig | None,
    decontaminate: DecontaminateConfig | None,
    annotate: AnnotateConfig,
    jury: list[AnnotateConfig],
    aggregate: AggregateConfig,
    gate: list[GateConfig],
    publish: PublishConfig | None,
    train: TrainConfig,
    score: ScoreConfig,
    filter: FilterConfig,
    tracking: TrackingConfig,
    output: str,
) -> None:
    """Sample and annotate the source, train a head on the scores, score the source, keep the best."""
    made = feature_steps(source, sample, deduplicate, decontaminate, annotate, jury, aggregate, gate, publish, output)
    head = train_head(train, output, scores=made.scores)
    scored, filtered = inference_steps(head, source, score, filter, output)
    write_report(head, scored, filtered, sample=made.sample, annotations=made.annotations, scores=made.scores)
    track_run(
        tracking,
        sample=made.sample,
        annotations=made.annotations,
        scores=made.scores,
        head=head,
        scored=scored,
        filtered=filtered,
    )
