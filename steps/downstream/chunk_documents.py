"""Cut documents into chunks."""

from typing import Annotated

from zenml import log_metadata, step

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.manifest import Manifest
from ml_filter.prepare.chunks import chunk_documents as chunk
from ml_filter.prepare.config import ChunkConfig
from steps.materializers import ManifestMaterializer
from steps.names import Artifact


@step(enable_cache=False, output_materializers=ManifestMaterializer)
def chunk_documents(
    config: ChunkConfig, output: str, source: SourceConfig | None = None, documents: Manifest | None = None
) -> Annotated[Manifest, Artifact.CHUNKS]:
    """Cut every document into chunks of a number of tokens."""
    source = SourceConfig(paths=[documents.root]) if documents is not None else source
    if source is None:
        raise ValueError("chunk_documents needs a source or documents")
    manifest = chunk(source, config, f"{output}/chunks-{{digest}}")
    log_metadata({"counts": dict(manifest.counts), "path": manifest.root})
    return manifest
