"""The report of a run: counts of every stage, what the corpus looks like, whether the head suits it; and its record."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from ml_filter.config import flat_settings
from ml_filter.documents.lineage import ancestors, annotation_runs, annotation_summary
from ml_filter.documents.manifest import MANIFEST_NAME, FailedShard, Manifest, find_manifest, read_manifest
from ml_filter.documents.result import read_result
from ml_filter.errors import InputError
from ml_filter.evaluation.promotion import Decision
from ml_filter.evaluation.result import EVALUATION_NAME, HeadEvaluation
from ml_filter.evaluation.result import REPORT_NAME as EVALUATION_PAGE
from ml_filter.heads.info import CalibratedCriterion, HeadInfo
from ml_filter.heads.kinds import cascade_of
from ml_filter.heads.kinds.cascade import CascadeInfo
from ml_filter.heads.profile import Profile, Shift, shifts
from ml_filter.heads.store import read_head
from ml_filter.heads.trained import TrainedHead
from ml_filter.location import Location
from ml_filter.metrics import FIGURES
from ml_filter.rendering.html import render, render_text
from ml_filter.rendering.plots import score_histogram
from ml_filter.reporting.config import DriftConfig
from ml_filter.reporting.corpus import NEAR, CorpusSummary, ScoreSummary, Stratum, summarise_corpus
from ml_filter.statistics.calibration import MIN_EACH_SIDE, ThresholdRow
from ml_filter.statistics.evaluation import Evaluation
from ml_filter.statistics.intervals import Figure, exact_interval, few_labels
from ml_filter.tracking import RunRecord


def record_run(
    manifests: Sequence[Manifest],
    head: TrainedHead | None = None,
    evaluations: Sequence[Manifest] = (),
    decision: Decision | None = None,
) -> RunRecord:
    """Collect counts and digests of each stage, and figures, settings and curves of the head that the run trained.

    `evaluations` are the directories that `evaluate_head` wrote for the head, one per criterion.
    """
    record = RunRecord()
    for manifest in manifests:
        record.metrics |= {f"{manifest.kind}_{name}": float(count) for name, count in manifest.counts.items()}
        record.parameters[f"{manifest.kind}_digest"] = manifest.digest
    # The scores know every annotator; the annotations passed to the run may be those of the first one only.
    runs = [run for manifest in manifests if manifest.kind == "scores" for run in annotation_runs(manifest)]
    record.parameters |= annotation_summary(runs or [m.config for m in manifests if m.kind == "annotations"])
    if head is not None:
        _add_head(record, head)
    for evaluation in evaluations:
        _add_evaluation(record, evaluation, several=len(evaluations) > 1)
    if decision is not None:
        record.parameters |= {"promoted": decision.promoted, "promotion_reasons": "; ".join(decision.reasons)}
    return record


def _add_head(record: RunRecord, head: TrainedHead) -> None:
    training = head.training
    record.history = training.history
    for criterion, evaluation in training.test.items():
        prefix = f"{criterion}_" if len(training.test) > 1 else ""
        record.metrics |= evaluation.figures(f"head_{prefix}")
        record.confusions[f"{prefix}test"] = _confusion(evaluation)
    record.parameters |= {
        "head_digest": head.digest,
        "labels_digest": ", ".join(parent.digest for parent in training.parents),
        **annotation_summary(training.lineage),
        **flat_settings(head.info.provenance.get("training", {}), "train_"),
    }


def _add_evaluation(record: RunRecord, manifest: Manifest, *, several: bool) -> None:
    directory = Location(manifest.root)
    evaluation = read_result(manifest, EVALUATION_NAME, HeadEvaluation, "ml-filter evaluate")
    prefix = f"{evaluation.criterion}_" if several else ""
    record.pages[f"{prefix}{EVALUATION_PAGE}"] = (directory / EVALUATION_PAGE).read_bytes().decode()
    record.metrics |= evaluation.figures(f"gold_{prefix}")
    record.parameters[f"{prefix}evaluation_digest"] = manifest.digest
    record.confusions[f"{prefix}gold"] = _confusion(evaluation)


def _confusion(evaluation: Evaluation) -> tuple[list[int], list[list[int]]]:
    return list(evaluation.classes), evaluation.confusion


REPORT_NAME = "report.html"
DATASHEET_NAME = "DATASHEET.md"
SHOWN_VALUES = 20
UNKNOWN_SHARE = 0.01
"""The head does not know scripts that a smaller share of its training documents is written in."""
_STAGE_NAMES = {"documents": "sample"}


class Stage(BaseModel):
    """One stage of the run: its name, the directory of its output, and its counts."""

    name: str
    path: str
    counts: dict[str, int]


class Effort(BaseModel):
    """What scoring took: hours summed over the workers, documents and characters per second of one worker, and the
    cost if the price of a worker's hour is known."""

    hours: float
    documents_per_second: float
    characters_per_second: float
    usd: float | None = None


class RunReport(BaseModel):
    """The content of the page, as data.

    Attributes:
        chosen: description of the selection, by the criterion `ranked_by`.
        threshold: on its score; None if no single threshold applies to all documents.
        expected: row of the head's calibration for that threshold.
        too_few_labels: why that row says little.
        shifts: differences from the training documents of the head; None if the head has no profile of them.
        unknown_scripts: share of documents in each script that is rare among the training documents.
        drift: why the corpus differs too much from the training documents, if there are limits.
        measured: the share of all decisions that, by its audit, differ from the encoder's.
        evaluation: figures of the head on held-out documents.
    """

    title: str
    stages: list[Stage]
    chosen: str
    ranked_by: str
    threshold: float | None
    expected: ThresholdRow | None
    too_few_labels: str | None = None
    warnings: list[str]
    facts: dict[str, str]
    corpus: CorpusSummary
    shifts: list[Shift] | None
    unknown_scripts: dict[str, float] = {}
    drift: list[str] = []
    cascade: CascadeInfo | None = None
    measured: Figure | None = None
    shards_failed: list[FailedShard] = []
    effort: Effort | None = None
    evaluation: Evaluation | None = None

    @property
    def scores(self) -> ScoreSummary:
        """The scores of the criterion of the selection."""
        return self.corpus.scores[self.ranked_by]

    @property
    def kept(self) -> int:
        """Number of documents that were kept."""
        return self.stages[-1].counts["kept"]

    def largest(self, column: str) -> list[tuple[str, Stratum]]:
        """The values of a column with the most documents."""
        by_size = sorted(self.corpus.strata[column].items(), key=lambda item: (-item[1].documents, item[0]))
        return by_size[:SHOWN_VALUES]

    def to_html(self) -> str:
        """Render the page."""
        plots = {
            name: score_histogram(scores.edges, scores.counts, self.threshold if name == self.ranked_by else None)
            for name, scores in self.corpus.scores.items()
        }
        return render("reporting/templates/run.html", report=self, plots=plots, near=NEAR)

    def to_datasheet(self) -> str:
        """Render the Markdown summary to publish with the filtered documents."""
        return render_text("reporting/templates/datasheet.md", report=self)


def write_run_report(
    head: TrainedHead,
    scored: Manifest,
    filtered: Manifest,
    feature: Sequence[Manifest] = (),
    usd_per_worker_hour: float | None = None,
    drift: DriftConfig | None = None,
) -> tuple[str, str, list[str]]:
    """Write `report.html`, `report.json` and `DATASHEET.md` beside the filtered documents.

    Returns the path, the page, and why the corpus differs too much from the training documents by the limits `drift`.

    `feature` are the manifests of sample, annotations and aggregated scores, if they belong to the run. Without the
    price of an hour of one worker, the report states no cost.
    """
    report = run_report(head, scored, filtered, feature, usd_per_worker_hour, drift)
    page = report.to_html()
    directory = Location(filtered.root)
    (directory / REPORT_NAME).write_bytes(page.encode())
    (directory / "report.json").write_bytes((report.model_dump_json(indent=1) + "\n").encode())
    (directory / DATASHEET_NAME).write_bytes(report.to_datasheet().encode())
    return filtered.path_of(REPORT_NAME), page, report.drift


def report_filtered(
    filtered: str | Path,
    scored: str | Path | None = None,
    head: str | Path | None = None,
    usd_per_worker_hour: float | None = None,
) -> tuple[str, str, list[str]]:
    """Write the report of a filtered corpus; see `write_run_report`.

    Scored corpus and head are by default those that the manifest names, where they were then.

    Raises:
        InputError: one of the three is missing or is not the one in the lineage, or the corpus was not scored by a
            trained head.
    """
    kept = read_manifest(filtered, "filtered")
    corpus_parent = kept.parents[0]
    corpus = read_manifest(scored or corpus_parent.path, "scored")
    if corpus.digest != corpus_parent.digest:
        is_grown = Location(corpus.root).absolute == Location(corpus_parent.path).absolute
        raise InputError(
            f"{corpus.root} has changed since {filtered} was selected from it; run the filter command again"
            if is_grown
            else f"{corpus.root} is not the corpus that {filtered} was selected from; pass that corpus with --scored"
        )
    scorer = corpus.parents[-1]
    trained = read_head(head or scorer.path)
    if trained.digest != scorer.digest:
        raise InputError(f"{trained.origin} is not the head that scored {corpus.root}; pass that head with --head")
    return write_run_report(trained, corpus, kept, usd_per_worker_hour=usd_per_worker_hour)


def run_report(
    head: TrainedHead,
    scored: Manifest,
    filtered: Manifest,
    feature: Sequence[Manifest] = (),
    usd_per_worker_hour: float | None = None,
    drift: DriftConfig | None = None,
) -> RunReport:
    """Build the report; arguments as in `write_run_report`."""
    training, info = head.training, head.info
    selection = filtered.config["selection"]
    threshold, cascade = selection.get("threshold"), cascade_of(head)
    # The only criterion of a head has the column `score`.
    columns = {f"score_{criterion.name}": criterion for criterion in info.criteria}
    criterion = columns.get(selection["score_column"], info.criteria[0])
    corpus = summarise_corpus(scored, filtered, info.criteria, criterion.name, threshold)
    facts = {"head": head.digest, "scored corpus": scored.digest, "filtered corpus": filtered.digest}
    facts |= annotation_summary(training.lineage) | {"code version": filtered.code_version}
    if filtered.commit:
        facts["commit"] = filtered.commit
    if made_with := scored.made_with:
        facts["scored with"] = "{engine} in {dtype} on {device}: {reason}".format_map(made_with)
    facts |= _annotator_figures(feature)
    facts["shards"] = f"{len(filtered.shards)}, one per input shard and with its name; digests in {MANIFEST_NAME}"
    # The manifest in the directory tells of the last run that changed it, the one given perhaps of a later one.
    changed = find_manifest(scored.root) or scored
    if changed.shards_reused:
        facts["new shards"] = (
            f"{changed.shards_new:,} scored by the last run that had new ones, {changed.shards_reused:,} before"
        )
    report = RunReport(
        title=f"Filtered corpus: {filtered.rows:,} of {scored.counts['read']:,} documents kept",
        stages=[
            *(Stage(name=_STAGE_NAMES.get(m.kind, m.kind), path=m.root, counts=m.counts) for m in feature),
            Stage(
                name="head",
                path=head.origin,
                counts={"trained_on": training.train_documents, "tested_on": training.test_documents},
            ),
            *(Stage(name=m.kind, path=m.root, counts=m.counts) for m in (scored, filtered)),
        ],
        chosen=_describe_selection(filtered.config["filter"], selection),
        ranked_by=criterion.name,
        threshold=threshold,
        expected=_expected(criterion, threshold),
        too_few_labels=_too_few_labels(criterion),
        warnings=[],
        facts=facts,
        corpus=corpus,
        shifts=None if info.profile is None else shifts(info.profile, corpus.profile),
        cascade=cascade,
        measured=None if cascade is None else _measured(scored.counts, cascade),
        shards_failed=scored.shards_failed,
        effort=_effort(scored, corpus, usd_per_worker_hour),
        evaluation=training.test.get(criterion.name),
    )
    unknown = {} if info.profile is None else _unknown_scripts(info.profile, corpus.profile)
    report = report.model_copy(update={"unknown_scripts": unknown})
    report = report.model_copy(update={"drift": _drift(report, drift)})
    return report.model_copy(update={"warnings": _warnings(report, info)})


def _unknown_scripts(trained: Profile, current: Profile) -> dict[str, float]:
    """The share of documents in each script that is rare among the training documents, largest first."""
    total, known = sum(current.scripts.values()), sum(trained.scripts.values())
    by_count = sorted(current.scripts.items(), key=lambda item: -item[1])
    return {
        script: count / total for script, count in by_count if trained.scripts.get(script, 0) / known < UNKNOWN_SHARE
    }


def _drift(report: RunReport, config: DriftConfig | None) -> list[str]:
    if config is None:
        return []
    reasons = [
        f"the {shift.what} of the documents has a population stability index of {shift.index:.2f} to the training "
        f"documents, above {config.max_shift:g}"
        for shift in report.shifts or ()
        if shift.index > max(config.max_shift, shift.by_chance)
    ]
    if (unknown := sum(report.unknown_scripts.values())) > config.max_unknown_share:
        reasons.append(
            f"{unknown:.1%} of the documents are in scripts that the head does not know "
            f"({', '.join(report.unknown_scripts)}), above {config.max_unknown_share:.1%}"
        )
    return reasons


def _annotator_figures(feature: Sequence[Manifest]) -> dict[str, str]:
    """Latency, speed and cost of each annotator of the run."""
    runs = [run for m in feature if m.kind == "scores" for run in ancestors(m) if run.kind == "annotations"]
    return {
        f"annotator {run.config['annotator']}": ", ".join(
            f"{name.replace('_', ' ')} {value:g}" for name, value in run.made_with[FIGURES].items()
        )
        for run in runs
        if run.made_with.get(FIGURES)
    }


def _effort(scored: Manifest, corpus: CorpusSummary, usd_per_worker_hour: float | None) -> Effort | None:
    if not scored.seconds:
        return None
    hours = scored.seconds / 3600
    return Effort(
        hours=hours,
        documents_per_second=corpus.documents / scored.seconds,
        characters_per_second=corpus.characters / scored.seconds,
        usd=None if usd_per_worker_hour is None else hours * usd_per_worker_hour,
    )


def _describe_selection(config: dict[str, Any], selection: dict[str, Any]) -> str:
    if config.get("min_score") is not None:
        text = f"documents with {selection['score_column']} of at least {config['min_score']:g}"
    else:
        text = "documents drawn with weights" if config.get("weighted") else "the best documents"
        if config.get("token_budget"):
            limit = f"{config['token_budget']:,} tokens"
        else:
            limit = f"{100 * config['keep_fraction']:.4g}% of the scored documents"
        text += f" by {selection['score_column']}, up to {limit}"
    conditions = [f"{item['name']} {item['op']} {item['value']:g}" for item in config.get("conditions", [])]
    if conditions:
        text += f", where {' and '.join(conditions)}"
    if config.get("quota"):
        text += f", with quotas by {', '.join(config['quota']['by'])}"
    return text


def _expected(criterion: CalibratedCriterion, threshold: float | None) -> ThresholdRow | None:
    """The row of the calibration table nearest to the threshold."""
    if criterion.calibration is None or threshold is None or not criterion.calibration.table:
        return None
    return min(criterion.calibration.table, key=lambda row: abs(row.score - threshold))


def _too_few_labels(criterion: CalibratedCriterion) -> str | None:
    calibration = criterion.calibration
    if calibration is None:
        return None
    good = sum(count for label, count in calibration.labels.items() if label >= criterion.threshold)
    return None if good >= MIN_EACH_SIDE else few_labels(good, calibration.documents, criterion.threshold)


def _measured(counts: dict[str, int], cascade: CascadeInfo) -> Figure:
    """The share of audited decisions that changed, times the share that the first stage decides; exact interval."""
    audited, changed = counts["audited"], counts["audited_changed"]
    if not audited:
        return Figure(value=None, documents=0, reason="no document was audited")
    settled = (counts["by_student"] + audited) / max(1, counts["by_student"] + counts["by_encoder"])
    low, high = exact_interval(changed, audited, cascade.confidence)
    return Figure(value=settled * changed / audited, documents=audited, low=settled * low, high=settled * high)


def _warnings(report: RunReport, info: HeadInfo) -> list[str]:
    """What a reader must know before using the result, most important first."""
    warnings, corpus = [], report.corpus
    warnings += [f"Drift: {reason}." for reason in report.drift]
    if report.kept == 0:
        warnings.append("No document was kept.")
    if report.shards_failed:
        warnings.append(
            f"{len(report.shards_failed):,} input shards could not be read; none of their documents is in the result."
        )
    if corpus.failed:
        share = corpus.failed / corpus.documents
        warnings.append(f"{corpus.failed:,} documents ({share:.1%}) could not be scored and were not kept.")
    if report.cascade is not None and report.threshold != report.cascade.threshold:
        warnings.append(
            f"The cascade's bound holds for decisions at a threshold of {report.cascade.threshold:g}, but this "
            "selection did not use that threshold."
        )
    if report.cascade is not None and report.measured and (report.measured.low or 0) > report.cascade.bound:
        warnings.append(
            f"The cascade changes more decisions than its bound of {report.cascade.bound:.2%}: "
            f"{report.measured.value:.2%}. The corpus differs from the sample that the cascade was built on."
        )
    if info.profile is None:
        warnings.append(
            "The head has no profile of its training documents, so this report cannot tell whether they "
            "resemble this corpus."
        )
        return warnings
    for script, share in report.unknown_scripts.items():
        trained_share = info.profile.scripts.get(script, 0) / sum(info.profile.scripts.values())
        if share >= UNKNOWN_SHARE:
            warnings.append(
                f"Out of distribution: {share:.1%} of the documents are written in {script}, but "
                f"only {trained_share:.1%} of the training documents of the head."
            )
    for shift in report.shifts or ():
        if shift.is_shifted and shift.what != "script":
            warnings.append(
                f"The distribution of {shift.what} differs from that of the training documents (population stability "
                f"index {shift.index:.2f}); the figures of the head may not hold for this corpus."
            )
    return warnings
