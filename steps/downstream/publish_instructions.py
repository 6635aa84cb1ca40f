"""Publish instructions."""

from typing import Annotated

from zenml import log_metadata, step

from ml_filter.documents.manifest import Manifest
from ml_filter.downstream.instruct.config import InstructPublishConfig
from ml_filter.downstream.instruct.publish import publish_instructions as publish
from steps.materializers import ManifestMaterializer
from steps.names import Artifact


@step(enable_cache=False, output_materializers=ManifestMaterializer)
def publish_instructions(
    instructions: Manifest, config: InstructPublishConfig, output: str, preferences: Manifest | None = None
) -> Annotated[Manifest, Artifact.INSTRUCTION_DATA]:
    """Write the data sets and their card, and push them if configured."""
    manifest = publish(instructions, preferences, config, f"{output}/data-{{digest}}")
    log_metadata({"counts": dict(manifest.counts), "path": manifest.root})
    return manifest
