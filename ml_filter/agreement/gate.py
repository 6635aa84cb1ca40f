"""The gate: stop a run whose scores agree too little with human gold."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from ml_filter.agreement.agreement import REPORT_NAME, Agreement, measure_agreement
from ml_filter.agreement.config import AgreementConfig, GateConfig
from ml_filter.documents.manifest import Manifest
from ml_filter.errors import GateFailed
from ml_filter.statistics.intervals import Figure
from ml_filter.statistics.metrics import PAIR_FIGURES
from ml_filter.statistics.pair import PairAgreement


class GateCheck(BaseModel):
    """One rater against gold, overall or in one stratum. `not_judged`: too few documents, and that is tolerated."""

    rater: str
    stratum: str
    figure: Figure
    outcome: Literal["passed", "failed", "not_judged"]
    reason: str


class GateResult(BaseModel):
    """What the gate found. `report` is the page with all figures."""

    scores: str
    metric: str
    min_agreement: float
    checks: list[GateCheck]
    report: str

    @property
    def passed(self) -> bool:
        """Whether the run may go on."""
        return all(check.outcome != "failed" for check in self.checks)

    def require(self) -> None:
        """Stop where the scores do not pass.

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


def check_gate(scores: Manifest | str | Path, config: GateConfig, output: str | Path) -> GateResult:
    """Compare scores with gold and let the run go on only where they agree, overall and in every stratum of `by`.

    Each rater of the scores has to pass: the lower bound of the metric's interval must reach `min_agreement` on at
    least `min_documents` documents, and at most `max_failed_share` may have failed. A figure that is undefined fails.
    `output` gets the agreement report either way.

    Args:
        scores: aggregated scores, annotations, or a rated table (with `rating_columns`).
        config: gold, metric and minimum.
        output: directory of the report; `{digest}` in it stands for settings and input.

    Raises:
        GateFailed: the scores do not pass.
        InputError: scores or gold cannot be read, or have no document in common.
    """
    result = run_gate(scores, config, output)
    result.require()
    return result


def run_gate(scores: Manifest | str | Path, config: GateConfig, output: str | Path) -> GateResult:
    """As `check_gate`, for callers that record the result before they `require` it."""
    path = scores.root if isinstance(scores, Manifest) else str(scores)
    measured = AgreementConfig.model_validate(config.model_dump(include=set(AgreementConfig.model_fields)))
    agreement, manifest = measure_agreement([path], measured, output)
    return judge_agreement(agreement, config, path, manifest.path_of(REPORT_NAME))


def judge_agreement(agreement: Agreement, config: GateConfig, scores: str, report: str) -> GateResult:
    """What the gate says of figures that are there already."""
    checks = [
        _check(name, pair, section.share_failed[pair.rater].value or 0.0, config)
        for name, section in agreement.sections().items()
        for pair in section.compared(agreement.gold)
    ]
    return GateResult(
        scores=scores, metric=config.metric, min_agreement=config.min_agreement, checks=checks, report=report
    )


def _check(stratum: str, pair: PairAgreement, share_failed: float, config: GateConfig) -> GateCheck:
    figure = pair.figures[config.metric]
    what = f"{pair.rater}, {stratum}: {PAIR_FIGURES[config.metric]}"
    outcome: Literal["passed", "failed", "not_judged"] = "failed"
    if figure.documents < config.min_documents:
        if stratum != "overall" and config.small_strata == "report":
            outcome = "not_judged"
        reason = f"{what} stands on {figure.documents} documents, {config.min_documents} are needed"
    elif share_failed > config.max_failed_share:
        reason = f"{pair.rater}, {stratum}: {share_failed:.1%} failed, at most {config.max_failed_share:.1%} may"
    elif figure.value is None or figure.low is None or figure.high is None:
        reason = f"{what} cannot be told on {figure.documents} documents ({figure.reason})"
    else:
        enough = figure.low >= config.min_agreement
        outcome = "passed" if enough else "failed"
        reason = (
            f"{what} is {figure.value:.3f} on {figure.documents} documents, {config.confidence:.0%} interval "
            f"{figure.low:.3f} to {figure.high:.3f}: its lower bound {'reaches' if enough else 'is under'} "
            f"{config.min_agreement:g}"
        )
    return GateCheck(rater=pair.rater, stratum=stratum, figure=figure, outcome=outcome, reason=reason)
