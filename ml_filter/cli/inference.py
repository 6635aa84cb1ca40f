"""Commands on a whole corpus."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ml_filter.cli.app import app
from ml_filter.cli.options import (
    ConfigFile,
    Device,
    DType,
    Head,
    IdColumn,
    OneSource,
    Output,
    Sources,
    Split,
    Subset,
    TextColumn,
    example,
    names_in,
    section_config,
    source_config,
    stage_config,
)
from ml_filter.cli.output import show, show_table

if TYPE_CHECKING:
    from ml_filter.documents.manifest import Manifest

_VALUES = 20
"""Of a quota, shown on a terminal."""


@app.command(
    epilog=example(
        "ml-filter score runs/head 'corpus/*.parquet' --output runs/scored",
        "ml-filter score runs/head crawl.warc.gz pages.jsonl.zst --workers 4 --output runs/scored",
        "ml-filter score runs/head s3://bucket/corpus --ray auto --workers 64 --worker-gpus 1 --output s3://bucket/scored",
        "srun ml-filter score runs/head /shared/corpus --rank auto --output /shared/scored",
    )
)
def score(
    model_dir: Head,
    source: Sources,
    output: Output,
    engine: Annotated[
        str | None,
        typer.Option(help="What runs the encoder: auto (on a CPU the faster one), torch or openvino (default: auto)"),
    ] = None,
    device: Device = None,
    dtype: DType = None,
    batch_tokens: Annotated[
        int | None, typer.Option(min=64, help="Padded tokens in a batch (default: 4096; GPU 65536)")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes, or Ray actors, that score shards at once (default: 1)")
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Score on a Ray cluster: its address, auto, or local for one of its own"),
    ] = None,
    worker_cpus: Annotated[
        int | None, typer.Option(min=1, help="Threads of a worker (default: the cores shared out; on a cluster 1)")
    ] = None,
    worker_gpus: Annotated[float | None, typer.Option(min=0, help="GPUs a worker asks of Ray (default: 0)")] = None,
    rank: Annotated[
        str | None,
        typer.Option(
            help="Score only this rank's shards, from 0; auto: what srun or torchrun says. For all ranks alike"
        ),
    ] = None,
    world_size: Annotated[int | None, typer.Option(min=1, help="How many ranks there are")] = None,
    damaged_shards: Annotated[
        str | None,
        typer.Option(help="fail: a truncated shard fails whole; keep: score what can be read (default: fail)"),
    ] = None,
    max_failed_shards: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Share of failed shards above which the exit code is 1 (default: 0)"),
    ] = None,
    max_failed_documents: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Share of documents without a score above which it is 1 (default: 0.01)"),
    ] = None,
    config: ConfigFile = None,
    text_column: TextColumn = "text",
    id_column: IdColumn = None,
    split: Split = "train",
    subset: Subset = None,
) -> None:
    """Score a corpus shard by shard to Parquet with score, int_score and score_status. A rerun does what is left."""
    from ml_filter.scoring.config import ScoreConfig
    from ml_filter.scoring.run import find_rank, score_corpus, score_rank

    settings = stage_config(
        ScoreConfig,
        "score",
        config,
        engine=engine,
        device=device,
        dtype=dtype,
        batch_tokens=batch_tokens,
        workers=workers,
        ray=ray,
        worker_cpus=worker_cpus,
        worker_gpus=worker_gpus,
        damaged_shards=damaged_shards,
        max_failed_shards=max_failed_shards,
        max_failed_documents=max_failed_documents,
    )
    documents = source_config(source, text_column, id_column, split, subset)
    if rank is None:
        show(score_corpus(model_dir, documents, settings, output))
        return
    made = score_rank(model_dir, documents, settings, output, find_rank(rank, world_size))
    if made is not None:
        show(made)
    else:
        print(f"this rank's shards are done, not yet those of all others; the last to end completes {output}")


@app.command(
    epilog=example(
        "ml-filter cascade runs/head 'corpus/*.parquet' --output runs/cascade",
        "ml-filter score runs/cascade 'corpus/*.parquet' --output runs/scored",
    )
)
def cascade(
    model_dir: Head,
    source: Sources,
    output: Output,
    threshold: Annotated[
        float | None, typer.Option(help="Documents are kept from this score upwards (default: the head's)")
    ] = None,
    max_changed: Annotated[
        float | None, typer.Option(help="Most of all decisions that may differ from the head's (default: 0.01)")
    ] = None,
    first_stage: Annotated[
        str | None, typer.Option(help="Kind of the first-stage model: hashing or static (default: hashing)")
    ] = None,
    sample: Annotated[
        int | None, typer.Option(min=100, help="Documents of the corpus that the head scores first (default: 20000)")
    ] = None,
    device: Device = None,
    dtype: DType = None,
    config: ConfigFile = None,
    text_column: TextColumn = "text",
    id_column: IdColumn = None,
    split: Split = "train",
    subset: Subset = None,
) -> None:
    """Add a fast first-stage model that decides the clear cases, with a bound on how many decisions change."""
    from ml_filter.heads.engine import read_cascade
    from ml_filter.scoring.cascade import build_cascade
    from ml_filter.scoring.config import CascadeConfig, ScoreConfig

    given = {"threshold": threshold, "max_changed": max_changed, "first_stage": first_stage, "sample": sample}
    settings = stage_config(CascadeConfig, "cascade", config, beside=("score",), **given)
    how = section_config(ScoreConfig, "score", config, device=device, dtype=dtype)
    documents = source_config(source, text_column, id_column, split, subset)
    made = read_cascade(build_cascade(model_dir, documents, settings, how, output).directory)
    assert made is not None
    counts = {"sample": made.sample, "tested on": made.tested, "settled by the first stage": made.settled}
    figures = {"share settled": made.settled / made.tested, "changed, at most": made.bound}
    show_table("cascade", output, {**counts, "of them changed": made.changed}, figures)


@app.command(
    "filter",
    epilog=example(
        "ml-filter filter runs/scored --min-score 3 --output runs/filtered",
        "ml-filter filter runs/scored --keep-fraction 0.1 --criterion educational --where 'adult<=1' "
        "--output runs/filtered",
        "ml-filter filter runs/scored --token-budget 10_000_000_000 --tokenizer gpt2 --quota language "
        "--output runs/filtered",
        "ml-filter filter runs/scored --token-budget 10_000_000_000 --token-column token_count --quota language "
        "--quota-share eng_Latn=0.7 --quota-share deu_Latn=0.3 --dropped --output runs/filtered",
        "ml-filter filter runs/scored --keep-fraction 0.2 --weighted --temperature 2 --seed 1 --output runs/filtered",
    ),
)
def filter_(
    scored: OneSource,
    output: Output,
    min_score: Annotated[float | None, typer.Option(help="Keep documents with at least this score")] = None,
    keep_fraction: Annotated[
        float | None, typer.Option(help="Keep the best, this fraction of those that can be kept (0.1: a tenth)")
    ] = None,
    token_budget: Annotated[int | None, typer.Option(help="Keep the best that have so many tokens together")] = None,
    criterion: Annotated[str | None, typer.Option(help="Whose score ranks (default: the only one)")] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(help="A condition such as 'adult<=1', on a criterion or a column; several: one --where each"),
    ] = None,
    quota: Annotated[
        str, typer.Option(help="Columns, comma-separated (also host, domain), to divide what is kept over")
    ] = "",
    quota_split: Annotated[
        str | None, typer.Option(help="Of a token budget: equal, or proportional to the tokens there are")
    ] = None,
    quota_share: Annotated[
        list[str] | None,
        typer.Option(metavar="VALUE=SHARE", help="Share of the token budget for one value; several: one each"),
    ] = None,
    weighted: Annotated[
        bool | None, typer.Option("--weighted", help="Draw, with a chance that grows with the score")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="Of --weighted: the higher, the less the score counts (default: 1)")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Settles ties and draws (default: 0)")] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="Hub name or directory (default: the embedded encoder's, to fill a budget)")
    ] = None,
    token_column: Annotated[str | None, typer.Option(help="Column with the number of tokens, in its place")] = None,
    dropped: Annotated[
        bool | None, typer.Option("--dropped", help="Write what is dropped, and why, to dropped/ of the output")
    ] = None,
    config: ConfigFile = None,
) -> None:
    """Keep the best documents: by a minimum score, a fraction, or a token budget."""
    from ml_filter.documents.config import SourceConfig
    from ml_filter.selection.config import FilterConfig
    from ml_filter.selection.select import filter_corpus

    settings = stage_config(
        FilterConfig,
        "filter",
        config,
        min_score=min_score,
        keep_fraction=keep_fraction,
        token_budget=token_budget,
        criterion=criterion,
        conditions=where,
        quota=_quota(quota, quota_split, quota_share or []),
        weighted=weighted,
        temperature=temperature,
        seed=seed,
        tokenizer=tokenizer,
        token_column=token_column,
        dropped=dropped,
    )
    manifest = filter_corpus(SourceConfig(paths=[scored]), settings, output)
    _show_selection(manifest)
    show(manifest)


@app.command(
    epilog=example(
        "ml-filter report runs/filtered",
        "ml-filter report moved/filtered --scored moved/scored --head moved/head --usd-per-worker-hour 0.9",
    )
)
def report(
    filtered: Annotated[str, typer.Argument(metavar="FILTERED", help="Directory made by filter", show_default=False)],
    scored: Annotated[
        str | None, typer.Option(metavar="DIR", help="What it was chosen from (default: where that was)")
    ] = None,
    head: Annotated[str | None, typer.Option(help="The head that scored it (default: where that was)")] = None,
    usd_per_worker_hour: Annotated[
        float | None, typer.Option(min=0, help="Price of an hour of one worker, to state what scoring cost")
    ] = None,
) -> None:
    """Write report.html, report.json and DATASHEET.md beside filtered documents: what was kept, and what to know."""
    from ml_filter.reporting.run import report_filtered

    path, _ = report_filtered(filtered, scored, head, usd_per_worker_hour)
    print(f"in {path}")


def _quota(columns: str, split: str | None, shares: list[str]) -> dict[str, Any] | None:
    if not columns:
        if split or shares:
            raise typer.BadParameter("--quota-split and --quota-share need --quota")
        return None
    quota: dict[str, Any] = {"by": names_in(columns), **({"split": split} if split else {})}
    for share in shares:
        value, equals, part = share.rpartition("=")
        if not equals:
            raise typer.BadParameter(f"{share!r} is not of the form VALUE=SHARE, as in --quota-share eng_Latn=0.7")
        quota.setdefault("shares", {})[value] = part
    return quota


def _show_selection(manifest: Manifest) -> None:
    """The threshold, or those of the quota's largest values."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    selection = manifest.config["selection"]
    console = Console()
    if "quota" not in selection:
        threshold = selection["threshold"]
        console.print(f"threshold {'none' if threshold is None else f'{threshold:g}'} ({selection['ranked_by']})")
        return
    quota = selection["quota"]
    unit = "documents" if manifest.config["filter"]["keep_fraction"] is not None else "tokens"
    table = Table(title=f"quotas, in {unit}", title_justify="left", box=None, header_style="dim")
    table.add_column(", ".join(quota["by"]), overflow="fold")
    for name in ("available", "quota", "budget", "kept", "threshold"):
        table.add_column(name, justify="right")
    for row in quota["largest"][:_VALUES]:
        figures = (row[unit], row["quota"], row["budget"], row[f"kept_{unit}"])
        threshold = "-" if row["threshold"] is None else f"{row['threshold']:.3f}"
        table.add_row(escape(row["value"]) or "(none)", *(f"{figure:,}" for figure in figures), threshold)
    console.print(table)
    if quota["values"] > _VALUES:
        console.print(f"and {quota['values'] - _VALUES:,} more, in {manifest.path_of(quota['file'])}", soft_wrap=True)
