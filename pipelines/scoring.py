"""Inference pipeline: from a corpus and a head to a filtered corpus."""

from zenml import pipeline

from ml_filter.documents.manifest import Manifest
from ml_filter.heads.trained import TrainedHead
from ml_filter.pipeline.config import EndToEndPipelineConfig, ScoringPipelineConfig
from steps.export_to_warehouse import export_to_warehouse
from steps.inference.build_cascade import build_cascade
from steps.inference.filter_corpus import filter_corpus
from steps.inference.score_corpus import score_corpus
from steps.inference.score_shard_group import score_shard_group
from steps.inference.write_report import write_report
from steps.track_run import track_run
from steps.training.load_head import load_head


def inference_steps(
    head: TrainedHead, config: ScoringPipelineConfig | EndToEndPipelineConfig, groups: int = 1
) -> tuple[Manifest, Manifest]:
    """Score and filter; each of several groups of shards is scored by a separate step."""
    names = [f"score_shard_group_{group}" for group in range(groups)] if groups > 1 else []
    for group, name in enumerate(names):
        score_shard_group(head, config.source, config.score, config.output, group, groups, id=name)
    scored = score_corpus(head, config.source, config.score, config.output, after=names)
    filtered = filter_corpus(scored, config.filter, config.output)
    if config.warehouse is not None:
        locations = config.warehouse.model_dump(include={"scored", "filtered"}, exclude_none=True)
        export_to_warehouse(locations, scored=scored, filtered=filtered, id="export_corpus")
    return scored, filtered


@pipeline(name="scoring", enable_cache=False)
def scoring_pipeline(config: ScoringPipelineConfig) -> None:
    """Score a corpus with a head, or with a cascade made from it, keep the best, write the report."""
    head = load_head(config.head)
    if config.cascade is not None:
        head = build_cascade(head, config.source, config.cascade, config.score, config.output)
    scored, filtered = inference_steps(head, config, config.shard_groups)
    write_report(head, scored, filtered, usd_per_worker_hour=config.usd_per_worker_hour, drift=config.drift)
    track_run(config.tracking, head=head, scored=scored, filtered=filtered)
