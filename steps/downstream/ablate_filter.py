"""Train models on what a filter keeps and on random documents, and compare them."""

from typing import Annotated

from zenml import log_metadata, step
from zenml.types import HTMLString

from ml_filter.documents.manifest import Manifest
from ml_filter.downstream.ablation.config import AblateConfig
from ml_filter.downstream.ablation.report import ablation_page
from ml_filter.downstream.ablation.run import ablate_filter as ablate
from steps.materializers import ManifestMaterializer
from steps.names import Artifact


@step(enable_cache=False, output_materializers={str(Artifact.ABLATION): ManifestMaterializer})
def ablate_filter(
    config: AblateConfig, output: str, directory: str | None = None, filtered: Manifest | None = None
) -> tuple[Annotated[Manifest, Artifact.ABLATION], Annotated[HTMLString, Artifact.ABLATION_REPORT]]:
    """Write the models, ablation.json and its page; returns the manifest and the page."""
    source = filtered.root if filtered is not None else directory
    if source is None:
        raise ValueError("ablate_filter needs a filtered corpus or its directory")
    ablation, manifest = ablate(source, config, output)
    log_metadata({"path": manifest.root, "verdict": ablation.verdict, "reason": ablation.reason})
    return manifest, HTMLString(ablation_page(ablation))
