"""Stop the run if scores and human gold do not agree well enough."""

from typing import Annotated, Any

from zenml import log_metadata, step

from ml_filter.agreement.agreement import GateResult, run_gate
from ml_filter.agreement.config import GateConfig
from ml_filter.documents.manifest import Manifest
from steps.names import Artifact


@step(enable_cache=False)
def gate_on_agreement(scores: Manifest, config: GateConfig, output: str) -> Annotated[GateResult, Artifact.GATE]:
    """Compare scores with gold, overall and by stratum. The step fails with the reasons if a check fails."""
    result = run_gate(scores, config, f"{output}/agreement-{{digest}}")
    log_metadata(_metadata(result))
    result.require()
    return result


def _metadata(result: GateResult) -> dict[str, Any]:
    return {
        "path": result.report,
        "outcome": "passed" if result.passed else "failed",
        "checks": [f"{check.outcome}: {check.reason}" for check in result.checks],
        "lower_bounds": result.figures(),
    }
