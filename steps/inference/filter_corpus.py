"""Keep the best of the scored corpus."""

from typing import Annotated, Any

from zenml import log_metadata, step

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.manifest import Manifest
from ml_filter.selection.config import FilterConfig
from ml_filter.selection.select import filter_corpus as keep
from steps.materializers import ManifestMaterializer
from steps.names import Artifact


@step(enable_cache=False, output_materializers=ManifestMaterializer)
def filter_corpus(scored: Manifest, config: FilterConfig, output: str) -> Annotated[Manifest, Artifact.FILTERED]:
    """Write the documents that reach the minimum score, or the best up to a fraction or a token budget."""
    manifest = keep(SourceConfig(paths=[scored.root]), config, f"{output}/filtered-{{digest}}")
    log_metadata({"counts": manifest.counts_of_run, "path": manifest.root, "selection": _selection(manifest)})
    return manifest


def _selection(manifest: Manifest) -> dict[str, Any]:
    """The figures of the selection; those of each value of a quota are in the manifest."""
    figures = {**manifest.config["selection"], **manifest.config["selection"].get("quota", {})}
    return {name: value for name, value in figures.items() if name not in ("quota", "largest") and value is not None}
