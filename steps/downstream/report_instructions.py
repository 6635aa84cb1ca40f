"""Report on instruction data."""

from typing import Annotated

from zenml import log_metadata, step
from zenml.types import HTMLString

from ml_filter.documents.manifest import Manifest
from ml_filter.downstream.instruct.report import read_page
from ml_filter.downstream.instruct.report import report_instructions as report
from steps.materializers import ManifestMaterializer
from steps.names import Artifact


@step(enable_cache=False, output_materializers={str(Artifact.INSTRUCT_REPORT): ManifestMaterializer})
def report_instructions(
    published: Manifest, instructions: Manifest, examples: int, output: str, preferences: Manifest | None = None
) -> tuple[Annotated[Manifest, Artifact.INSTRUCT_REPORT], Annotated[HTMLString, Artifact.INSTRUCT_PAGE]]:
    """Write what every stage kept and dropped, with examples; returns the manifest and the page."""
    manifest = report(published, instructions, preferences, examples, f"{output}/report-{{digest}}")
    log_metadata({"counts": dict(manifest.counts), "path": manifest.root})
    return manifest, HTMLString(read_page(manifest))
