"""Draw a sample of what the source has gained since the last run."""

from typing import Annotated

from zenml import get_step_context, log_metadata, step
from zenml.client import Client

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.manifest import Manifest
from ml_filter.prepare.config import SampleConfig
from ml_filter.prepare.new_documents import SampledSoFar
from ml_filter.prepare.new_documents import sample_new_documents as draw
from steps.materializers import ManifestMaterializer
from steps.names import Artifact

_RUNS = 100
"""How many successful runs are looked at, from the last one back."""


@step(enable_cache=False, output_materializers={Artifact.SAMPLE.value: ManifestMaterializer})
def sample_new_documents(
    source: SourceConfig, config: SampleConfig, output: str, scope: str
) -> tuple[Annotated[Manifest, Artifact.SAMPLE], Annotated[SampledSoFar, Artifact.SAMPLED_SO_FAR]]:
    """Sample the shards that no successful run of the same scope has sampled. The first run samples the source.

    Runs with another scope, such as other prompts, have labels that do not fit together.
    """
    before = _sampled_before(scope)
    manifest, after = draw(source, config, f"{output}/sample-{{digest}}", before)
    is_new = before is None or len(after.samples) > len(before.samples)
    log_metadata({"counts": {**manifest.counts, "new": manifest.rows if is_new else 0}, "path": manifest.root})
    return manifest, after


def _sampled_before(scope: str) -> SampledSoFar | None:
    """What the last successful run had sampled after it, with the annotations that its labels come from.

    The last is the run that sampled last: a rerun of an older run may have ended since.
    """
    pipeline = get_step_context().pipeline
    runs = Client().list_pipeline_runs(pipeline_id=pipeline.id, status="completed", sort_by="desc:created", size=_RUNS)
    found = []
    for run in runs:
        steps = Client().get_pipeline_run(run.id).steps
        sampled, aggregated = steps.get("sample_new_documents"), steps.get("aggregate_scores")
        if sampled and aggregated and sampled.config.parameters["scope"] == scope:
            [[scores]] = aggregated.outputs.values()
            found.append((sampled.outputs[Artifact.SAMPLED_SO_FAR][0], scores))
    if not found:
        return None
    sampled_so_far, scores = max(found, key=lambda artifacts: artifacts[0].created)
    state: SampledSoFar = sampled_so_far.load()
    manifest: Manifest = scores.load()
    return state.model_copy(update={"annotations": [parent.path for parent in manifest.parents]})
