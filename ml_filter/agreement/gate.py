"""The gate: stop a run whose scores agree too little with human gold."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from ml_filter.agreement.agreement import REPORT_NAME, measure_agreement
from ml_filter.agreement.config import AgreementConfig, GateConfig
from ml_filter.documents.manifest import Manifest
from ml_filter.errors import GateFailed
from ml_filter.statistics.agreement import PairAgreement
from ml_filter.statistics.intervals import Figure
from ml_filter.statistics.metrics import PAIR_FIGURES

Outcome = Literal["passed", "failed", "not_judged"]


class GateCheck(BaseModel):
    """One rater against gold, overall or in one stratum. `not_judged`: too few documents, which is tolerated."""

    rater: str
    stratum: str
    figure: Figure
    outcome: Outcome
    reason: str


class GateResult(BaseModel):
    """The checks of the gate. `report` is the page with all figures."""

    scores: str
    metric: str
    min_agreement: float
    checks: list[GateCheck]
    report: str

    @property
    def passed(self) -> bool:
        """Whether the run may continue."""
        return all(check.outcome != "failed" for check in self.checks)

    def require(self) -> None:
        """Stop the run if a check failed.

        Raises:
            GateFailed: with the reason for each check that failed.
        """
        failed = [check.reason for check in self.checks if check.outcome == "failed"]
        if failed:
            raise GateFailed(f"{self.scores} does not pass the gate: {'; '.join(failed)}. All figures: {self.report}")

    def figures(self) -> dict[str, float]:
        """The lower bound of each check that has one, for trackers."""
        return {
            f"{check.rater}/{check.stratum}": check.figure.low for check in self.checks if check.figure.low is not None
        }


def run_gate(scores: Manifest | str | Path, config: GateConfig, output: str | Path) -> GateResult:
    """Compare scores with gold, overall and in every stratum of `by`, and check that they agree enough.

    Every rater must pass: the lower bound of the metric's interval must reach `min_agreement` on at least
    `min_documents` documents, and at most `max_failed_share` may have failed. An undefined figure fails. The agreement
    report is written to `output` either way; `require` on the result stops the run.

    `scores` are aggregated scores, annotations, or a rated table (with `rating_columns`).

    Raises:
        InputError: scores or gold cannot be read, or have no document in common.
    """
    path = scores.root if isinstance(scores, Manifest) else str(scores)
    measured = AgreementConfig.model_validate(config.model_dump(include=set(AgreementConfig.model_fields)))
    agreement, manifest = measure_agreement([path], measured, output)
    checks = [
        _check(name, pair, section.share_failed[pair.rater].value or 0.0, config)
        for name, section in agreement.sections().items()
        for pair in section.compared(agreement.gold)
    ]
    return GateResult(
        scores=path,
        metric=config.metric,
        min_agreement=config.min_agreement,
        checks=checks,
        report=manifest.path_of(REPORT_NAME),
    )


def _check(stratum: str, pair: PairAgreement, share_failed: float, config: GateConfig) -> GateCheck:
    figure = pair.figures[config.metric]
    subject = f"{pair.rater}, {stratum}"
    passed, reason = figure.reaches(
        f"{subject}: {PAIR_FIGURES[config.metric]}", config.min_agreement, config.min_documents, config.confidence
    )
    outcome: Outcome = "passed" if passed else "failed"
    if figure.documents < config.min_documents:
        if stratum != "overall" and config.small_strata == "report":
            outcome = "not_judged"
    elif share_failed > config.max_failed_share:
        outcome = "failed"
        reason = f"{subject}: {share_failed:.1%} failed; at most {config.max_failed_share:.1%} is allowed"
    return GateCheck(rater=pair.rater, stratum=stratum, figure=figure, outcome=outcome, reason=reason)
