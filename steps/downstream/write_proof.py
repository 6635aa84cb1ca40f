"""Write the page about the whole loop."""

from typing import Annotated

from zenml import log_metadata, step
from zenml.types import HTMLString

from ml_filter.documents.manifest import Manifest
from ml_filter.downstream.proof.page import proof_page
from ml_filter.downstream.proof.page import write_proof as write
from ml_filter.downstream.tuning.result import TunedModel
from steps.materializers import ManifestMaterializer
from steps.names import Artifact


@step(enable_cache=False, output_materializers={str(Artifact.PROOF): ManifestMaterializer})
def write_proof(
    annotations: Manifest,
    filtered: Manifest,
    ablation: Manifest,
    instructions: Manifest,
    tuned: TunedModel,
    judgement: Manifest,
    output: str,
) -> tuple[Annotated[Manifest, Artifact.PROOF], Annotated[HTMLString, Artifact.PROOF_PAGE]]:
    """Write proof.json and its page; returns the manifest and the page."""
    directory = f"{output}/proof-{{digest}}"
    proof, manifest = write(annotations, filtered, ablation, instructions, tuned, judgement, directory)
    log_metadata({"path": manifest.root, **dict(proof.summary)})
    return manifest, HTMLString(proof_page(proof))
