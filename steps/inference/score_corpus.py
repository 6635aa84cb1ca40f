"""Score the corpus."""

from typing import Annotated

from zenml import log_metadata, step

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.manifest import Manifest
from ml_filter.heads.trained import TrainedHead
from ml_filter.scoring.config import ScoreConfig
from ml_filter.scoring.run import score_corpus as score
from steps.materializers import ManifestMaterializer
from steps.names import Artifact, scored_directory


@step(enable_cache=False, output_materializers=ManifestMaterializer)
def score_corpus(
    head: TrainedHead, source: SourceConfig, config: ScoreConfig, output: str
) -> Annotated[Manifest, Artifact.SCORED]:
    """Score every document, shard by shard."""
    manifest = score(head, source, config, scored_directory(output))
    log_metadata({"counts": manifest.counts_of_run, "path": manifest.root})
    return manifest
