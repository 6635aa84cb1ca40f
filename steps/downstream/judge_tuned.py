"""Compare a tuned model with its base."""

from typing import Annotated

from zenml import log_metadata, step
from zenml.types import HTMLString

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.manifest import Manifest
from ml_filter.downstream.judging.config import JudgeConfig
from ml_filter.downstream.judging.report import judgement_page
from ml_filter.downstream.judging.run import judge_tuned as judge
from ml_filter.downstream.tuning.result import TunedModel
from steps.materializers import ManifestMaterializer
from steps.names import Artifact


@step(enable_cache=False, output_materializers={str(Artifact.JUDGEMENT): ManifestMaterializer})
def judge_tuned(
    config: JudgeConfig,
    output: str,
    directory: str | None = None,
    tuned: TunedModel | None = None,
    data: SourceConfig | None = None,
) -> tuple[Annotated[Manifest, Artifact.JUDGEMENT], Annotated[HTMLString, Artifact.JUDGEMENT_REPORT]]:
    """Write judgement.json and its page; returns the manifest and the page."""
    model = tuned or directory
    if model is None:
        raise ValueError("judge_tuned needs a tuned model or its directory")
    judgement, manifest = judge(model, config, output, data)
    log_metadata({"path": manifest.root, "verdict": judgement.verdict, "reason": judgement.reason})
    return manifest, HTMLString(judgement_page(judgement))
