"""Draw a sample of the source."""

from typing import Annotated

from zenml import log_metadata, step

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.manifest import Manifest
from ml_filter.prepare.config import SampleConfig
from ml_filter.prepare.sampling import sample_documents as draw
from steps.materializers import ManifestMaterializer
from steps.names import Artifact


@step(enable_cache=False, output_materializers=ManifestMaterializer)
def sample_documents(source: SourceConfig, config: SampleConfig, output: str) -> Annotated[Manifest, Artifact.SAMPLE]:
    """Read the source once and keep a random sample."""
    manifest = draw(source, config, f"{output}/sample-{{digest}}")
    log_metadata({"counts": dict(manifest.counts), "path": manifest.root})
    return manifest
