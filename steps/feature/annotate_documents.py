"""Let an LLM score documents."""

from typing import Annotated

from zenml import log_metadata, step

from ml_filter.annotation.annotate import annotate_documents as annotate
from ml_filter.annotation.config import AnnotateConfig
from ml_filter.annotation.run import answers_of
from ml_filter.documents.config import SourceConfig
from ml_filter.documents.lineage import annotation_summary
from ml_filter.documents.manifest import Manifest
from steps.materializers import ManifestMaterializer
from steps.names import Artifact


@step(enable_cache=False, output_materializers=ManifestMaterializer, substitutions={"of": ""})
def annotate_documents(
    config: AnnotateConfig, output: str, documents: Manifest | None = None, source: SourceConfig | None = None
) -> Annotated[Manifest, Artifact.ANNOTATIONS]:
    """Ask the configured endpoints, or the embedded annotator, about every document of a directory or a source."""
    ledgers = None
    if documents is not None:
        # The directory of a grown sample is another one, and so is that of its annotations: they share a ledger.
        source, ledgers = SourceConfig(paths=[documents.root]), f"{output}/ledgers"
    if source is None:
        raise ValueError("annotate_documents needs documents or a source")
    manifest = annotate(source, config, f"{output}/annotations-{{digest}}", ledgers=ledgers)
    log_metadata(
        {
            "counts": {**manifest.counts, **answers_of(manifest)},
            "path": manifest.root,
            "made_by": annotation_summary([manifest.config]),
            **_cost(manifest, config),
        }
    )
    return manifest


def _cost(manifest: Manifest, config: AnnotateConfig) -> dict[str, float]:
    usd = config.usd(manifest.counts["prompt_tokens"], manifest.counts["completion_tokens"])
    return {} if usd is None else {"usd": usd}
