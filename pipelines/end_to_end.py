"""End-to-end pipeline: from documents to a filtered corpus."""

from zenml import pipeline

from ml_filter.pipeline.config import EndToEndPipelineConfig
from pipelines.annotation import feature_steps
from pipelines.scoring import inference_steps
from steps.inference.write_report import write_report
from steps.track_run import track_run
from steps.training.train_head import train_head


@pipeline(name="end_to_end", enable_cache=False)
def end_to_end_pipeline(config: EndToEndPipelineConfig) -> None:
    """Sample and annotate the source, train a head on the scores, score the source, keep the best."""
    features = feature_steps(config)._asdict()
    head = train_head(config.train, config.output, scores=features["scores"])
    scored, filtered = inference_steps(head, config)
    write_report(head, scored, filtered, **features)
    track_run(config.tracking, head=head, scored=scored, filtered=filtered, **features)
