"""Serving pipeline: one document a run. It is deployed, not run: `python -m tools.deploy head=runs/head`."""

from typing import Annotated, Any

from zenml import pipeline

from ml_filter.heads.engine import Engine, load_engine
from ml_filter.scoring.config import ScoreConfig
from steps.inference.score_document import score_document
from steps.names import Artifact


def load_head(head: str = "runs/head", score: ScoreConfig = ScoreConfig()) -> Engine:  # noqa: B008 ZenML asks for it
    """What a deployment does once, before its first run."""
    return load_engine(head, score)


@pipeline(name="serving", enable_cache=False, on_init=load_head)
def serving_pipeline(text: str = "") -> Annotated[dict[str, Any], Artifact.SCORED_DOCUMENT]:
    """Score a document. (A deployment's parameters need a default; a document without text fails as empty.)"""
    scored: dict[str, Any] = score_document(text)
    return scored
