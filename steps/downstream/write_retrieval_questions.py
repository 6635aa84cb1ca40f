"""Let an LLM write questions about the passages of an index."""

from typing import Annotated

from zenml import log_metadata, step

from ml_filter.documents.manifest import Manifest
from ml_filter.downstream.retrieval.config import AnswerConfig
from ml_filter.downstream.retrieval.questions import write_questions
from steps.materializers import ManifestMaterializer
from steps.names import Artifact


@step(enable_cache=False, output_materializers=ManifestMaterializer)
def write_retrieval_questions(
    index: Manifest, size: int, config: AnswerConfig, output: str
) -> Annotated[Manifest, Artifact.RETRIEVAL_QUESTIONS]:
    """Draw passages at random and ask for a question about each."""
    manifest = write_questions(index.root, size, config, output)
    log_metadata({"counts": manifest.counts, "path": manifest.root})
    return manifest
