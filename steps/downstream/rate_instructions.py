"""Rate instructions."""

from typing import Annotated

from zenml import log_metadata, step

from ml_filter.documents.manifest import Manifest
from ml_filter.downstream.instruct.config import InstructConfig
from ml_filter.downstream.instruct.run import rate_instructions as rate
from steps.materializers import ManifestMaterializer
from steps.names import Artifact


@step(enable_cache=False, output_materializers=ManifestMaterializer)
def rate_instructions(
    instructions: Manifest, config: InstructConfig, output: str
) -> Annotated[Manifest, Artifact.RATED_INSTRUCTIONS]:
    """Keep the instructions that the jury rates high enough."""
    manifest = rate(instructions, config, output)
    log_metadata({"counts": dict(manifest.counts), "path": manifest.root})
    return manifest
