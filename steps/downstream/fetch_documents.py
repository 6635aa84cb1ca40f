"""Fetch documents."""

from typing import Annotated

from zenml import log_metadata, step

from ml_filter.documents.manifest import Manifest
from ml_filter.downstream.fetching.config import FetchConfig
from ml_filter.downstream.fetching.run import fetch_documents as fetch
from steps.materializers import ManifestMaterializer
from steps.names import Artifact


@step(enable_cache=False, output_materializers=ManifestMaterializer)
def fetch_documents(config: FetchConfig, output: str) -> Annotated[Manifest, Artifact.FETCHED]:
    """Add what is new or changed to the directory of these sources."""
    manifest, figures = fetch(config, f"{output}/fetched-{{digest}}")
    log_metadata({"counts": manifest.counts_of_run, "path": manifest.root, "run": figures})
    return manifest
