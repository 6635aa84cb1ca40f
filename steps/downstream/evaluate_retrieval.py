"""Evaluate the search of an index, and answers from it."""

from typing import Annotated

from zenml import log_metadata, step
from zenml.types import HTMLString

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.manifest import Manifest
from ml_filter.downstream.retrieval.config import AnswerConfig, RetrievalEvaluationConfig, SearchConfig
from ml_filter.downstream.retrieval.evaluate import evaluate_retrieval as evaluate
from ml_filter.downstream.retrieval.evaluate import retrieval_page
from steps.materializers import ManifestMaterializer
from steps.names import Artifact


@step(enable_cache=False, output_materializers={str(Artifact.RETRIEVAL): ManifestMaterializer})
def evaluate_retrieval(
    index: Manifest,
    search: SearchConfig,
    answer: AnswerConfig,
    config: RetrievalEvaluationConfig,
    output: str,
    questions: SourceConfig | None = None,
    written: Manifest | None = None,
) -> tuple[Annotated[Manifest, Artifact.RETRIEVAL], Annotated[HTMLString, Artifact.RETRIEVAL_REPORT]]:
    """Compare ways to search on the given or the written questions, and rate the answers of the LLM to some of them."""
    source = questions or SourceConfig(paths=[written.root if written else ""])
    result, manifest = evaluate(index.root, source, search, config, output, answer=answer)
    log_metadata({"path": manifest.root, "verdicts": result.verdicts, "figures": result.figures()})
    return manifest, HTMLString(retrieval_page(result))
