"""Export the results of a pipeline to the warehouse."""

from typing import Annotated, Any

from zenml import log_metadata, step

from ml_filter.documents.manifest import Manifest
from ml_filter.publishing.warehouse import export_directory
from steps.names import Artifact


@step(enable_cache=False)
def export_to_warehouse(
    locations: dict[str, str],
    annotations: list[Manifest] = [],  # noqa: B006 - ZenML takes lists of artifacts only by this very type
    scores: Manifest | None = None,
    scored: Manifest | None = None,
    filtered: Manifest | None = None,
    fetched: Manifest | None = None,
) -> Annotated[dict[str, Any], Artifact.EXPORTED]:
    """Write each directory to the collection of its kind; returns the counts by the path of the directory."""
    counts: dict[str, Any] = {}
    for manifest in (*annotations, scores, scored, filtered, fetched):
        if manifest is not None and manifest.kind in locations:
            counts[manifest.root] = export_directory(manifest.root, locations[manifest.kind])
    log_metadata({"counts": {path.replace("/", "|"): values for path, values in counts.items()}})
    return counts
