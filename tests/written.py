"""Annotation directories written straight to disk, for the tests of what reads them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from ml_filter.criterion import Criterion
from ml_filter.documents.config import SourceConfig
from ml_filter.documents.lineage import criteria_config
from ml_filter.documents.output_directory import OutputDirectory
from ml_filter.documents.schema import ANNOTATION_SCHEMA

DANGER = Criterion(name="danger", low=0, high=1, threshold=1)


def prompt(criterion: str = "quality", language: str | None = "en") -> dict:
    """An entry of an annotation manifest's list of prompts."""
    name = f"{criterion}_{language}"
    return {
        "name": name,
        "digest": f"digest of {name}",
        "criterion": criterion,
        "language": language,
    }


def write_annotations(
    directory: Path,
    votes: Sequence[tuple[Any, ...]],
    annotator: str = "m",
    asked: Sequence[dict] = (),
    source: Path | None = None,
    settings: Mapping[str, Any] | None = None,
    criteria: Sequence[Criterion] = (DANGER,),
) -> Path:
    """Write votes: (document, parsed score or None for a failed vote[, expected score[, criterion]]).

    Criteria that are not in `criteria` have the default range and threshold.
    Votes of one document, criterion and directory are numbered from 0.
    """
    prompts = {entry["criterion"]: entry for entry in asked or [prompt()]}
    numbers: Counter[tuple[str, str]] = Counter()
    rows = []
    for document, score, *more in votes:
        expected, criterion = [*more, None, None][:2]
        entry = prompts[criterion or next(iter(prompts))]
        rows.append(
            {
                **dict.fromkeys(ANNOTATION_SCHEMA.names),
                "document_id": document,
                "annotator": annotator,
                "prompt": entry["name"],
                "prompt_digest": entry["digest"],
                "criterion": entry["criterion"],
                "vote": numbers[document, entry["criterion"]],
                "status": "failed" if score is None else "scored",
                "score": score,
                "expected_score": expected,
                "error": "timeout" if score is None else None,
                "windows": 1,
                "truncated": False,
            }
        )
        numbers[document, entry["criterion"]] += 1
    made_by = {"annotator": annotator, "votes": max(numbers.values(), default=0), "prompts": list(prompts.values())}
    defined = {criterion.name: criterion for criterion in criteria}
    made_by |= criteria_config(defined.get(name) or Criterion.of_labels(name, None, None) for name in prompts)
    made_by |= settings or {}
    if source:
        made_by["source"] = SourceConfig(paths=[str(source)]).model_dump(mode="json")
    with OutputDirectory(directory, "annotations", made_by, []) as out:
        with out.new_shard("a", ANNOTATION_SCHEMA) as writer, out.new_rejects("a") as rejects:
            writer.write(pa.Table.from_pylist(rows, schema=ANNOTATION_SCHEMA))
        out.finish([("a", out.commit("a", writer, rejects, {}))])
    return directory
