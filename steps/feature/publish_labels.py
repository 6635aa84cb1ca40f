"""Publish the scored documents as a labelled data set."""

from typing import Annotated

from zenml import log_metadata, step

from ml_filter.agreement.agreement import GateResult
from ml_filter.documents.config import SourceConfig
from ml_filter.documents.manifest import Manifest
from ml_filter.publishing.config import PublishConfig
from ml_filter.publishing.labelled import publish_labels as publish
from steps.materializers import ManifestMaterializer
from steps.names import Artifact


@step(enable_cache=False, output_materializers=ManifestMaterializer)
def publish_labels(
    scores: Manifest,
    documents: Manifest,
    config: PublishConfig,
    output: str,
    gates: list[GateResult] = [],  # noqa: B006 - ZenML takes lists of artifacts only by this very type
) -> Annotated[Manifest, Artifact.LABELLED]:
    """Write splits and data card. Without `config.agreement`, the card states the agreement measured by the gates."""
    if gates and config.agreement is None:
        measured = dict.fromkeys(gate.report.rpartition("/")[0] for gate in gates)
        config = PublishConfig.model_validate({**config.model_dump(), "agreement": list(measured)})
    source = SourceConfig(paths=[documents.root])
    manifest = publish(scores.root, config, f"{output}/labelled-{{digest}}", source)
    log_metadata({"counts": dict(manifest.counts), "path": manifest.root})
    return manifest
