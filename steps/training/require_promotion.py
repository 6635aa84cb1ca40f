"""Fail the run if its head is not promoted."""

from zenml import step

from ml_filter.evaluation.promotion import Decision


@step(enable_cache=False)
def require_promotion(decision: Decision) -> None:
    """Fail with the reasons. Runs last, so that everything else is recorded."""
    decision.require()
