"""Index documents for retrieval."""

from typing import Annotated

from zenml import log_metadata, step

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.manifest import Manifest
from ml_filter.downstream.retrieval.config import IndexConfig
from ml_filter.downstream.retrieval.index import build_index
from steps.materializers import ManifestMaterializer
from steps.names import Artifact


@step(enable_cache=False, output_materializers=ManifestMaterializer)
def index_documents(source: SourceConfig, config: IndexConfig, output: str) -> Annotated[Manifest, Artifact.INDEX]:
    """Split documents into passages, embed and index them, or add what the source has gained."""
    manifest = build_index(source, config, f"{output}/index-{{digest}}")
    log_metadata({"counts": manifest.counts_of_run, "path": manifest.root})
    return manifest
