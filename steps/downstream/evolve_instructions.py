"""Evolve instructions."""

from typing import Annotated

from zenml import log_metadata, step

from ml_filter.documents.manifest import Manifest
from ml_filter.downstream.instruct.config import InstructConfig
from ml_filter.downstream.instruct.run import evolve_instructions as evolve
from steps.materializers import ManifestMaterializer
from steps.names import Artifact


@step(enable_cache=False, output_materializers=ManifestMaterializer)
def evolve_instructions(
    written: Manifest, config: InstructConfig, output: str
) -> Annotated[Manifest, Artifact.EVOLVED_INSTRUCTIONS]:
    """Evolve instructions, then drop duplicates and those that contain evaluation texts."""
    manifest = evolve(written, config, output)
    log_metadata({"counts": dict(manifest.counts), "path": manifest.root})
    return manifest
