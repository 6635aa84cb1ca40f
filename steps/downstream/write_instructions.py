"""Let an LLM write instructions."""

from typing import Annotated

from zenml import log_metadata, step

from ml_filter.config import Settings
from ml_filter.documents.manifest import Manifest
from ml_filter.downstream.instruct.config import InstructConfig
from ml_filter.downstream.instruct.run import check_stages
from ml_filter.downstream.instruct.run import write_instructions as write
from steps.materializers import ManifestMaterializer
from steps.names import Artifact


@step(enable_cache=False, output_materializers=ManifestMaterializer)
def write_instructions(
    chunks: Manifest, config: InstructConfig, output: str
) -> Annotated[Manifest, Artifact.WRITTEN_INSTRUCTIONS]:
    """Write instructions from chunks, and keep those that pass the checks."""
    check_stages(config, Settings())
    manifest = write(chunks, config, output)
    log_metadata({"counts": dict(manifest.counts), "path": manifest.root})
    return manifest
