"""The report of a run: what came in, was rejected, scored, failed and kept, and whether the head could judge it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fsspec
from pydantic import BaseModel

from ml_filter.documents.lineage import annotation_summary
from ml_filter.documents.manifest import MANIFEST_NAME, FailedShard, Manifest, read_manifest
from ml_filter.errors import InputError
from ml_filter.heads.engine import CascadeInfo, read_cascade
from ml_filter.heads.info import CalibratedCriterion, HeadInfo, read_info
from ml_filter.heads.load import resolve_head
from ml_filter.heads.profile import Shift, shifts
from ml_filter.heads.train import TrainedHead, head_parent, read_head
from ml_filter.rendering.html import render, render_text
from ml_filter.rendering.plots import score_histogram
from ml_filter.reporting.corpus import NEAR, CorpusSummary, ScoreSummary, Stratum, summarise_corpus
from ml_filter.statistics.calibration import ThresholdRow
from ml_filter.statistics.evaluation import Evaluation
from ml_filter.statistics.intervals import Figure, exact_interval

REPORT_NAME = "report.html"
DATASHEET_NAME = "DATASHEET.md"
SHOWN_VALUES = 20
UNKNOWN_SHARE = 0.01
"""A script that fewer of the training documents are written in is not known to the head."""
_STAGE_NAMES = {"documents": "sample"}


class Stage(BaseModel):
    """One stage of the run: its name, where its output is, and its counts."""

    name: str
    path: str
    counts: dict[str, int]


class Effort(BaseModel):
    """What scoring took: hours, summed over the workers, documents and characters a second of one worker, and what
    that cost, where the price of a worker's hour is known."""

    hours: float
    documents_per_second: float
    characters_per_second: float
    usd: float | None = None


class RunReport(BaseModel):
    """All that the page shows, as data.

    Attributes:
        title: what was kept of what.
        stages: of the run.
        chosen: how it was chosen what is kept, in words.
        ranked_by: the criterion it was chosen by.
        threshold: on its score, where there is one for all documents.
        expected: what the head's calibration says of that threshold.
        warnings: what a reader has to know before using the result.
        facts: what made it.
        corpus: what it looks like.
        shifts: from the documents that the head was trained on; None where these are not known.
        cascade: what is known of the cascade that scored, if one did.
        measured: the share of all decisions that its audit found to differ from the encoder's.
        shards_failed: input shards of which nothing was scored.
        effort: what scoring took, where it is known.
        evaluation: of the head, on documents kept apart from its training.
    """

    title: str
    stages: list[Stage]
    chosen: str
    ranked_by: str
    threshold: float | None
    expected: ThresholdRow | None
    warnings: list[str]
    facts: dict[str, str]
    corpus: CorpusSummary
    shifts: list[Shift] | None
    cascade: CascadeInfo | None = None
    measured: Figure | None = None
    shards_failed: list[FailedShard] = []
    effort: Effort | None = None
    evaluation: Evaluation | None = None

    @property
    def scores(self) -> ScoreSummary:
        """Those that it was chosen by."""
        return self.corpus.scores[self.ranked_by]

    @property
    def kept(self) -> int:
        """Documents that were kept."""
        return self.stages[-1].counts["kept"]

    def largest(self, column: str) -> list[tuple[str, Stratum]]:
        """The values of a column with most documents."""
        found = sorted(self.corpus.strata[column].items(), key=lambda item: (-item[1].documents, item[0]))
        return found[:SHOWN_VALUES]

    def to_html(self) -> str:
        """The page."""
        plots = {
            name: score_histogram(of.edges, of.counts, self.threshold if name == self.ranked_by else None)
            for name, of in self.corpus.scores.items()
        }
        return render("reporting/templates/run.html", report=self, plots=plots, near=NEAR)

    def to_datasheet(self) -> str:
        """What to put beside the filtered documents wherever they go, in Markdown."""
        return render_text("reporting/templates/datasheet.md", report=self)


def write_run_report(
    head: TrainedHead,
    scored: Manifest,
    filtered: Manifest,
    feature: Sequence[Manifest] = (),
    usd_per_worker_hour: float | None = None,
) -> tuple[str, str]:
    """Write `report.html`, `report.json` and `DATASHEET.md` beside the filtered documents.

    Args:
        head: the head that scored.
        scored: the scored corpus.
        filtered: what was kept of it.
        feature: the sample, annotations and aggregated scores, where they belong to the run.
        usd_per_worker_hour: what an hour of one worker costs, where that is to be stated.

    Returns:
        The path of the page and the page.
    """
    report = run_report(head, scored, filtered, feature, usd_per_worker_hour)
    page = report.to_html()
    fs, root = fsspec.core.url_to_fs(filtered.root)
    fs.pipe_file(f"{root}/{REPORT_NAME}", page.encode())
    fs.pipe_file(f"{root}/report.json", (report.model_dump_json(indent=1) + "\n").encode())
    fs.pipe_file(f"{root}/{DATASHEET_NAME}", report.to_datasheet().encode())
    return filtered.path_of(REPORT_NAME), page


def report_filtered(
    filtered: str | Path,
    scored: str | Path | None = None,
    head: str | Path | None = None,
    usd_per_worker_hour: float | None = None,
) -> tuple[str, str]:
    """Write the report of a filtered corpus with what its manifests say it was made of; as `write_run_report`.

    Args:
        filtered: its directory.
        scored: the directory of the scored corpus; not given: where it was when it was filtered.
        head: as `resolve_head` knows it; not given: where it was when it scored.
        usd_per_worker_hour: what an hour of one worker costs, where that is to be stated.

    Raises:
        InputError: one of the three is not there or is another, or the corpus was not scored with a trained head.
    """
    kept = read_manifest(filtered, "filtered")
    corpus = kept.parents[0]
    whole = read_manifest(scored or corpus.path, "scored")
    if whole.digest != corpus.digest:
        raise InputError(f"{whole.root} is not the corpus that {filtered} was chosen from; name that with --scored")
    scorer = whole.parents[-1]
    directory = resolve_head(head or scorer.path)
    if head_parent(directory).digest != scorer.digest:
        raise InputError(f"{directory} is not the head that scored {whole.root}; name that with --head")
    return write_run_report(read_head(directory), whole, kept, usd_per_worker_hour=usd_per_worker_hour)


def run_report(
    head: TrainedHead,
    scored: Manifest,
    filtered: Manifest,
    feature: Sequence[Manifest] = (),
    usd_per_worker_hour: float | None = None,
) -> RunReport:
    """The report; arguments as those of `write_run_report`."""
    training, info = head.training, read_info(head.directory)
    selection = filtered.config["selection"]
    threshold, cascade = selection.get("threshold"), read_cascade(head.directory)
    criterion = _chosen_by(info, selection["score_column"])
    corpus = summarise_corpus(scored, filtered, info.criteria, criterion.name, threshold)
    found = None if info.profile is None else shifts(info.profile, corpus.profile)
    facts = {"head": head.digest, "scored corpus": scored.digest, "filtered corpus": filtered.digest}
    facts |= annotation_summary(training.lineage) | {"code version": filtered.code_version}
    if made_with := scored.made_with:
        facts["scored with"] = "{engine} in {dtype} on {device}: {reason}".format_map(made_with)
    facts["shards"] = f"{len(filtered.shards)}, each of the input shard it is named after; digests in {MANIFEST_NAME}"
    report = RunReport(
        title=f"Filtered corpus: {filtered.rows:,} of {scored.counts['read']:,} documents kept",
        stages=[
            *(Stage(name=_STAGE_NAMES.get(m.kind, m.kind), path=m.root, counts=m.counts) for m in feature),
            Stage(
                name="head",
                path=head.directory,
                counts={"trained_on": training.train_documents, "tested_on": training.test_documents},
            ),
            *(Stage(name=m.kind, path=m.root, counts=m.counts) for m in (scored, filtered)),
        ],
        chosen=_in_words(filtered.config["filter"], selection),
        ranked_by=criterion.name,
        threshold=threshold,
        expected=_expected(criterion, threshold),
        warnings=[],
        facts=facts,
        corpus=corpus,
        shifts=found,
        cascade=cascade,
        measured=None if cascade is None else _measured(scored.counts, cascade),
        shards_failed=scored.shards_failed,
        effort=_effort(scored, corpus, usd_per_worker_hour),
        evaluation=training.test.get(criterion.name),
    )
    return report.model_copy(update={"warnings": _warnings(report, info)})


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


def _chosen_by(info: HeadInfo, column: str) -> CalibratedCriterion:
    """The criterion whose scores a column holds."""
    return next((one for one in info.criteria if column == f"score_{one.name}"), info.criteria[0])


def _in_words(config: dict[str, Any], selection: dict[str, Any]) -> str:
    if config.get("min_score") is not None:
        what = f"documents with {selection['score_column']} of at least {config['min_score']:g}"
    else:
        what = "a weighted draw of documents" if config.get("weighted") else "the best documents"
        most = f"{config['token_budget']:,} tokens" if config.get("token_budget") else None
        most = most or f"{100 * config['keep_fraction']:.4g}% of those that were scored"
        what += f" by {selection['score_column']}, up to {most}"
    conditions = [f"{one['name']} {one['op']} {one['value']:g}" for one in config.get("conditions", [])]
    if conditions:
        what += f", where {' and '.join(conditions)}"
    if config.get("quota"):
        what += f", divided over {', '.join(config['quota']['by'])}"
    return what


def _expected(criterion: CalibratedCriterion, threshold: float | None) -> ThresholdRow | None:
    """The row of the calibration's table that is nearest to the threshold."""
    if criterion.calibration is None or threshold is None or not criterion.calibration.table:
        return None
    return min(criterion.calibration.table, key=lambda row: abs(row.score - threshold))


def _measured(counts: dict[str, int], cascade: CascadeInfo) -> Figure:
    """The changed share of the audited, times the share that was settled; with a Clopper-Pearson interval."""
    audited, changed = counts["audited"], counts["audited_changed"]
    if not audited:
        return Figure(value=None, documents=0, reason="nothing was audited")
    settled = (counts["by_student"] + audited) / max(1, counts["by_student"] + counts["by_encoder"])
    low, high = exact_interval(changed, audited, cascade.confidence)
    return Figure(value=settled * changed / audited, documents=audited, low=settled * low, high=settled * high)


def _warnings(report: RunReport, info: HeadInfo) -> list[str]:
    """What a reader has to know before using the result, most important first."""
    found, corpus = [], report.corpus
    if report.kept == 0:
        found.append("Nothing was kept.")
    if report.shards_failed:
        found.append(
            f"{len(report.shards_failed):,} input shards could not be read: none of their documents is in the result."
        )
    if corpus.failed:
        share = corpus.failed / corpus.documents
        found.append(f"{corpus.failed:,} documents ({share:.1%}) could not be scored, and were not kept.")
    if report.cascade is not None and report.threshold != report.cascade.threshold:
        found.append(
            f"The cascade's bound is of decisions at {report.cascade.threshold:g}; what is kept was chosen otherwise."
        )
    if report.cascade is not None and report.measured and (report.measured.low or 0) > report.cascade.bound:
        found.append(
            f"The cascade changes more decisions than it promised: {report.measured.value:.2%}, not "
            f"{report.cascade.bound:.2%}. The corpus is unlike the sample it was made from."
        )
    if info.profile is None:
        found.append("It is not known what the head was trained on: nothing says whether it can judge this corpus.")
        return found
    scripts = info.profile.scripts
    for script, count in sorted(corpus.profile.scripts.items(), key=lambda item: -item[1]):
        known = scripts.get(script, 0) / sum(scripts.values())
        if known < UNKNOWN_SHARE <= count / corpus.documents:
            found.append(
                f"The head is out of its depth: {count / corpus.documents:.1%} of the documents are written in "
                f"{script}, {known:.1%} of those it was trained on."
            )
    for shift in report.shifts or ():
        if shift.is_shifted and shift.what != "script":
            found.append(
                f"The distribution of {shift.what} is unlike that of the training documents (population stability "
                f"index {shift.index:.2f}): figures of the head may not hold here."
            )
    return found
