"""Inference pipeline: from a corpus and a head to a filtered corpus."""

from zenml import pipeline
from zenml.enums import ExecutionMode

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.manifest import Manifest
from ml_filter.heads.train import TrainedHead
from ml_filter.scoring.config import CascadeConfig, ScoreConfig
from ml_filter.selection.config import FilterConfig
from ml_filter.tracking import TrackingConfig
from steps.inference.build_cascade import build_cascade
from steps.inference.filter_corpus import filter_corpus
from steps.inference.score_corpus import score_corpus
from steps.inference.score_shard_group import score_shard_group
from steps.inference.write_report import write_report
from steps.track_run import track_run
from steps.training.load_head import load_head


def inference_steps(
    head: TrainedHead, source: SourceConfig, score: ScoreConfig, config: FilterConfig, output: str, groups: int = 1
) -> tuple[Manifest, Manifest]:
    """Score, filter; the shards in so many groups, each a step of its own."""
    names = [f"score_shard_group_{group}" for group in range(groups)] if groups > 1 else []
    for group, name in enumerate(names):
        score_shard_group(head, source, score, output, group, groups, id=name)
    scored = score_corpus(head, source, score, output, after=names)
    return scored, filter_corpus(scored, config, output)


@pipeline(name="scoring", enable_cache=False, execution_mode=ExecutionMode.FAIL_FAST)
def scoring_pipeline(
    head: str,
    source: SourceConfig,
    score: ScoreConfig,
    filter: FilterConfig,
    tracking: TrackingConfig,
    output: str,
    cascade: CascadeConfig | None = None,
    shard_groups: int = 1,
    usd_per_worker_hour: float | None = None,
) -> None:
    """Score a corpus with a head, or a cascade made from it, keep the best, write the report."""
    loaded = load_head(head)
    if cascade is not None:
        loaded = build_cascade(loaded, source, cascade, score, output)
    scored, filtered = inference_steps(loaded, source, score, filter, output, shard_groups)
    write_report(loaded, scored, filtered, usd_per_worker_hour=usd_per_worker_hour)
    track_run(tracking, head=loaded, scored=scored, filtered=filtered)
