"""Score one document with the head that the deployment holds."""

from typing import Annotated, Any

from zenml import get_step_context, log_metadata, step

from ml_filter.heads.engine import Engine
from ml_filter.serving.documents import Document
from ml_filter.serving.documents import score_document as score
from steps.names import Artifact


@step(enable_cache=False)
def score_document(text: str) -> Annotated[dict[str, Any], Artifact.SCORED_DOCUMENT]:
    """Scores by criterion, or the reason why there are none."""
    engine = get_step_context().pipeline_state
    assert isinstance(engine, Engine)
    scored = score(engine, Document(text=text))
    log_metadata({"status": scored.status, "reason": scored.reason or ""})
    return scored.model_dump()
