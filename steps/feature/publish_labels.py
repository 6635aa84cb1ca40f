"""Publish the scored documents as a labelled data set."""

from typing import Annotated

from zenml import log_metadata, step

from ml_filter.agreement.gate import GateResult
from ml_filter.documents.manifest import Manifest
from ml_filter.settings import PublishConfig, SourceConfig
from ml_filter.storage.labelled import publish_labels as publish
from steps.materializers import ManifestMaterializer
from steps.names import Artifact


@step(enable_cache=False, output_materializers=ManifestMaterializer)
def publish_labels(
    scores: Manifest, documents: Manifest, config: PublishConfig, output: str, gate: GateResult | None = None
) -> Annotated[Manifest, Artifact.LABELLED]:
    """Split the documents with their scores and write the data card, with the gate's agreement where it was asked."""
    if gate is not None and config.agreement is None:
        config = config.model_copy(update={"agreement": gate.report.rpartition("/")[0]})
    source = SourceConfig(paths=[documents.root])
    manifest = publish(scores.root, config, f"{output}/labelled-{{digest}}", source)
    log_metadata({"counts": dict(manifest.counts), "path": manifest.root})
    return manifest
