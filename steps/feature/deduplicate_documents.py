"""Drop duplicates."""

from typing import Annotated

from zenml import log_metadata, step

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.manifest import Manifest
from ml_filter.prepare.config import DeduplicateConfig
from ml_filter.prepare.deduplicate import deduplicate_documents as deduplicate
from steps.materializers import ManifestMaterializer
from steps.names import Artifact


@step(enable_cache=False, output_materializers=ManifestMaterializer)
def deduplicate_documents(
    documents: Manifest, config: DeduplicateConfig, output: str
) -> Annotated[Manifest, Artifact.DEDUPLICATED]:
    """Keep the first of each set of duplicates."""
    manifest = deduplicate(SourceConfig(paths=[documents.root]), config, f"{output}/deduplicated-{{digest}}")
    log_metadata({"counts": dict(manifest.counts), "path": manifest.root})
    return manifest
