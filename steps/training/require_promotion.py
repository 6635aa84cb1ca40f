"""End the run where its head is not promoted."""

from zenml import step

from ml_filter.evaluation.promotion import Decision


@step(enable_cache=False)
def require_promotion(decision: Decision) -> None:
    """Fail with the reasons; runs last, when all else is recorded."""
    decision.require()
