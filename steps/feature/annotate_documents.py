"""Let an LLM score the sample."""

from typing import Annotated

from zenml import log_metadata, step

from ml_filter.annotation.annotate import annotate_documents as annotate
from ml_filter.documents.manifest import Manifest
from ml_filter.settings import AnnotateConfig, SourceConfig
from steps.materializers import ManifestMaterializer
from steps.names import Artifact


@step(enable_cache=False, output_materializers=ManifestMaterializer)
def annotate_documents(
    sample: Manifest, config: AnnotateConfig, output: str
) -> Annotated[Manifest, Artifact.ANNOTATIONS]:
    """Ask the configured endpoint, or the embedded judge, about every document of the sample."""
    manifest = annotate(SourceConfig(paths=[sample.root]), config, f"{output}/annotations-{{digest}}")
    log_metadata({"counts": dict(manifest.counts), "path": manifest.root, "made_by": _made_by(manifest)})
    return manifest


def _made_by(manifest: Manifest) -> dict[str, str]:
    return {key: str(manifest.config[key]) for key in ("criterion", "prompt", "prompt_digest", "annotator")}
