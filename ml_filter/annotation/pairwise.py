"""Compare two answers to a task by an LLM that reads them in both orders, so that a liking for a position shows.

A verdict counts only if it is the same in both orders: an answer that wins as A and as B is better. A tie in both
orders is a tie; everything else is inconsistent and says something about the judge, not about the answers.

What is too long for the judge loses the end of the task. A pair whose answers are too long has failed: a judge that
does not see the answers would call it a tie.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, Literal

import pyarrow as pa

from ml_filter.annotation.config import AskConfig
from ml_filter.annotation.generate import GENERATED, STATUS_COLUMNS, GenerationPrompt, generate, load_generation_prompt
from ml_filter.config import Settings
from ml_filter.documents.config import SourceConfig
from ml_filter.documents.derived import derive_documents, read_rows_of
from ml_filter.documents.manifest import Manifest, Parent
from ml_filter.documents.output_directory import OutputDirectory
from ml_filter.documents.readers import read_tables

Verdict = Literal["first", "second", "tie", "inconsistent", "failed"]
_ORDERS = ("ab", "ba")
_MARK = re.compile(r"(?m)^([^\S\n]*Answer(?: [AB])?:)")
_PAIR_FROM = "\n\nAnswer A:\n"
ANSWER_FROM = "\n\nAnswer:\n"
"""What follows these marks is not cut."""
_SWAPPED = {"A": "B", "B": "A", "tie": "tie"}
_VERDICTS: dict[str, Verdict] = {"A": "first", "B": "second", "tie": "tie"}
VERDICTS = "verdicts"
"""Kind of the directories of verdicts."""
PAIR_COLUMNS = ("id", "task", "first", "second")


def judge_pairs(
    pairs: Manifest,
    prompt: GenerationPrompt | str,
    config: AskConfig,
    output: str,
    settings: Settings | None = None,
    *,
    ledgers: str | None = None,
) -> Manifest:
    """The verdict of a judge on each pair of answers, asked in both orders.

    Writes all columns of the pairs and `verdict` (`first`, `second`, `tie`, `inconsistent` or `failed`), `verdict_ab`
    and `verdict_ba` (the winner in each order, as `first`, `second` or `tie`; null if it failed), `verdict_reason` (of
    the first order, or why it failed) and `judged_by`. The counts of the manifest have the number of each verdict;
    `won_a` and `won_b` count the wins by position, whoever won; `truncated` counts the comparisons whose task was cut.

    Args:
        pairs: a directory with the columns `id`, `task`, `first` and `second`.
        prompt: writes `winner` (A, B or tie) and `reason`, such as compare_answers.
        output: directory of the directories of this stage.

    Raises:
        TooManyFailures, EndpointError, InputError: see `generate`.
    """
    question = load_generation_prompt(prompt, like=["compare_answers"]) if isinstance(prompt, str) else prompt
    directory = f"{output}/pairs-in-both-orders-{{digest}}"
    orders = derive_documents(pairs, PAIR_COLUMNS, _in_both_orders, directory)
    source = SourceConfig(paths=[orders.root])
    directory = f"{output}/comparisons-{{digest}}"
    answers = generate(source, question, config, directory, settings, ledgers=ledgers, kept_from=_PAIR_FROM)
    parents = [Parent(path=manifest.root, digest=manifest.digest) for manifest in (pairs, answers)]
    with OutputDirectory(f"{output}/verdicts-{{digest}}", VERDICTS, {}, parents) as out:
        if out.manifest:
            return out.manifest
        counts: Counter[str] = Counter(pairs=0, won_a=0, won_b=0, truncated=answers.counts["truncated"])
        rows = read_rows_of(answers, ["id", "winner", "reason", *STATUS_COLUMNS])
        with out.new_shard("verdicts") as writer, out.new_rejects("verdicts") as rejects:
            for path in pairs.shard_paths():
                for table in read_tables(path):
                    verdicts = [_verdict(next(rows), next(rows), counts) for _ in range(table.num_rows)]
                    counts.update(pairs=table.num_rows)
                    counts.update(str(verdict["verdict"]) for verdict in verdicts)
                    added = pa.Table.from_pylist(verdicts, schema=_ADDED)
                    for field, column in zip(_ADDED, added.columns, strict=True):
                        table = table.append_column(field, column)  # noqa: PLW2901
                    writer.write(table)
        return out.finish([("verdicts", out.commit("verdicts", writer, rejects, counts))])


_ADDED = pa.schema(
    [(name, pa.string()) for name in ("verdict", "verdict_ab", "verdict_ba", "verdict_reason", "judged_by")]
)


def render_pair(task: str, answer_a: str, answer_b: str) -> str:
    """What a judge reads. An answer cannot contain the beginning of the other."""
    answer_a, answer_b = (_MARK.sub(r"> \1", answer) for answer in (answer_a, answer_b))
    return f"Task:\n{task}{_PAIR_FROM}{answer_a}\n\nAnswer B:\n{answer_b}"


def render_answer(task: str, answer: str) -> str:
    """What a judge reads who rates an answer. `ANSWER_FROM` is only where it begins, or in the task."""
    return f"Task:\n{task}{ANSWER_FROM}" + _MARK.sub(r"> \1", answer)


def _in_both_orders(pair: dict[str, Any]) -> Iterator[tuple[str, str]]:
    answers = (pair["first"], pair["second"])
    for order, shown in zip(_ORDERS, (answers, answers[::-1]), strict=True):
        yield f"{pair['id']} {order}", render_pair(pair["task"], *shown)


def _verdict(forward: dict[str, Any], swapped: dict[str, Any], counts: Counter[str]) -> dict[str, str | None]:
    """The verdict of both orders; counts the wins by position."""
    failed = [row for row in (forward, swapped) if row["generation_status"] != GENERATED]
    winners = [None if row in failed else row["winner"] for row in (forward, swapped)]
    counts.update(won_a=winners.count("A"), won_b=winners.count("B"))
    ab, ba = winners[0], _SWAPPED.get(winners[1] or "")
    verdict: Verdict = "failed" if ab is None or ba is None else _VERDICTS[ab] if ab == ba else "inconsistent"
    return {
        "verdict": verdict,
        "verdict_ab": _VERDICTS.get(ab or ""),
        "verdict_ba": _VERDICTS.get(ba or ""),
        "verdict_reason": failed[0]["generation_reason"] if failed else forward["reason"],
        "judged_by": forward["generated_by"] or swapped["generated_by"],
    }
