"""Make preference pairs."""

from typing import Annotated

from zenml import log_metadata, step

from ml_filter.documents.manifest import Manifest
from ml_filter.downstream.instruct.config import InstructConfig
from ml_filter.downstream.instruct.run import prefer
from steps.materializers import ManifestMaterializer
from steps.names import Artifact


@step(enable_cache=False, output_materializers=ManifestMaterializer)
def prefer_answers(
    instructions: Manifest, config: InstructConfig, output: str
) -> Annotated[Manifest, Artifact.PREFERENCES]:
    """Let models answer the instructions, and keep the pairs of which the judge prefers one in both orders."""
    manifest = prefer(instructions, config, output)
    log_metadata({"counts": dict(manifest.counts), "path": manifest.root})
    return manifest
