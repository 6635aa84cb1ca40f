"""Make one score of the votes on each document."""

from typing import Annotated

from zenml import log_metadata, step

from ml_filter.agreement.aggregate import aggregate_annotations
from ml_filter.documents.manifest import Manifest
from ml_filter.settings import AggregateConfig
from steps.materializers import ManifestMaterializer
from steps.names import Artifact


@step(enable_cache=False, output_materializers=ManifestMaterializer)
def aggregate_scores(
    annotations: Manifest, config: AggregateConfig, output: str
) -> Annotated[Manifest, Artifact.SCORES]:
    """Combine the votes; failed ones are counted and left out."""
    manifest = aggregate_annotations([annotations.root], config, f"{output}/scores-{{digest}}")
    log_metadata({"counts": dict(manifest.counts), "path": manifest.root})
    return manifest
