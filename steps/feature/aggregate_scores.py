"""Aggregate the votes on each document to one score."""

from typing import Annotated

from zenml import log_metadata, step

from ml_filter.agreement.aggregate import aggregate_annotations, read_reliability
from ml_filter.agreement.config import AggregateConfig
from ml_filter.documents.manifest import Manifest
from ml_filter.prepare.new_documents import SampledSoFar
from steps.materializers import ManifestMaterializer
from steps.names import Artifact


@step(enable_cache=False, output_materializers=ManifestMaterializer, substitutions={"of": ""})
def aggregate_scores(
    annotations: list[Manifest], config: AggregateConfig, output: str, earlier: SampledSoFar | None = None
) -> Annotated[Manifest, Artifact.SCORES]:
    """Combine the votes of one or more annotators, and those of earlier runs. Failed votes are counted and left out."""
    roots = [*(earlier.annotations if earlier else ()), *(manifest.root for manifest in annotations)]
    manifest = aggregate_annotations([*dict.fromkeys(roots)], config, f"{output}/scores-{{digest}}")
    log_metadata({"counts": dict(manifest.counts), "path": manifest.root, **_reliability(manifest)})
    return manifest


def _reliability(manifest: Manifest) -> dict[str, dict[str, float]]:
    return {
        f"reliability_{reliability.criterion}": {
            annotator.annotator: annotator.accuracy for annotator in reliability.annotators
        }
        for reliability in read_reliability(manifest)
    }
