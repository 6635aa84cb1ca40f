"""Drop documents that overlap evaluation sets."""

from typing import Annotated

from zenml import log_metadata, step

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.manifest import Manifest
from ml_filter.prepare.config import DecontaminateConfig
from ml_filter.prepare.decontaminate import decontaminate_documents as decontaminate
from steps.materializers import ManifestMaterializer
from steps.names import Artifact


@step(enable_cache=False, output_materializers=ManifestMaterializer)
def decontaminate_documents(
    documents: Manifest, config: DecontaminateConfig, output: str
) -> Annotated[Manifest, Artifact.DECONTAMINATED]:
    """Keep the documents that overlap neither gold nor evaluation sets."""
    manifest = decontaminate(SourceConfig(paths=[documents.root]), config, f"{output}/decontaminated-{{digest}}")
    log_metadata({"counts": dict(manifest.counts), "path": manifest.root})
    return manifest
