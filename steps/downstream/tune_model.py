"""Tune a language model on instruction data."""

from typing import Annotated, Any

from zenml import ArtifactConfig, log_metadata, step
from zenml.enums import ArtifactType

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.manifest import Manifest
from ml_filter.downstream.tuning.config import TuneConfig
from ml_filter.downstream.tuning.result import TunedModel
from ml_filter.downstream.tuning.tune import tune_model as tune
from steps.materializers import TunedModelMaterializer
from steps.names import Artifact


@step(enable_cache=False, output_materializers=TunedModelMaterializer)
def tune_model(
    config: TuneConfig, output: str, data: SourceConfig | None = None, instructions: Manifest | None = None
) -> Annotated[TunedModel, ArtifactConfig(name=Artifact.TUNED_MODEL, artifact_type=ArtifactType.MODEL)]:
    """Write adapter, merged model, GGUF, card and report; the model version gets the figures and the lineage."""
    data = SourceConfig(paths=[instructions.root]) if instructions is not None else data
    if data is None:
        raise ValueError("tune_model needs data or instructions")
    model = tune(data, config, f"{output}/tuned-{{digest}}")
    figures = model.values
    log_metadata({"path": model.root, "digest": model.digest, "counts": model.result.data.counts, "figures": figures})
    # Not the names of a head's metadata: the version may have one too.
    metadata: dict[str, Any] = {"tuned_figures": figures, "tuned_digest": model.digest}
    log_metadata(metadata={**metadata, "tuned_lineage": model.result.lineage_digests()}, infer_model=True)
    return model
