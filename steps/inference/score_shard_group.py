"""Score one of several groups of shards."""

from zenml import log_metadata, step

from ml_filter.documents.config import SourceConfig
from ml_filter.heads.trained import TrainedHead
from ml_filter.scoring.config import ScoreConfig
from ml_filter.scoring.run import Rank, score_rank
from steps.names import scored_directory


@step(enable_cache=False)
def score_shard_group(
    head: TrainedHead, source: SourceConfig, config: ScoreConfig, output: str, group: int, groups: int
) -> None:
    """Score the shards of one group. After all groups, `score_corpus` collects their output.

    Failures are tolerated here and checked by `score_corpus`; otherwise a bad shard would stop groups that have not
    started.
    """
    tolerant = config.model_copy(update={"max_failed_shards": 1.0, "max_failed_documents": 1.0})
    manifest = score_rank(head, source, tolerant, scored_directory(output), Rank(group, groups))
    log_metadata({"group": group, "groups": groups})
    if manifest is not None and manifest.shards_new:  # for `score_corpus`, nothing will be new
        log_metadata({"counts": manifest.counts_of_run, "path": manifest.root})
