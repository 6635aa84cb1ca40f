"""Records of the EuroLingua (Modalities) ml_filter tool: JSON lines, one document per line, its votes in lists.

Fields: `document_id, scores[], explanations[], errors[][], time_stamps[], document_processing_status[],
meta_information{prompt_name, prompt_lang, model_name, raw_data_file_path, out_tokens_per_second}`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError, model_validator

from ml_filter.config import problems_in

_ERROR_CODES = {
    "error_server": "server_error",
    "error_no_generated_text": "no_text",
    "error_faulty_score": "unparsable_score",
    "request_collected": "not_answered",
}
"""Error code for each `document_processing_status` that is not `success`."""
_STATUSES = {
    "no_text": "error_no_generated_text",
    "empty_answer": "error_no_generated_text",
    "unparsable_score": "error_faulty_score",
    "out_of_range": "error_faulty_score",
    "no_logprobs": "error_faulty_score",
    "no_score": "error_faulty_score",
    "not_answered": "request_collected",
}
"""`document_processing_status` for each error code; that of all others is `error_server`."""
_YEAR_10000 = datetime(9999, 12, 31, tzinfo=UTC).timestamp()


class MetaInformation(BaseModel):
    """What the votes of a record have in common."""

    prompt_name: str | None = None
    prompt_lang: str | None = None
    model_name: str | None = None
    # Added when this project writes a record, to read it back without loss; the EuroLingua tool ignores them.
    prompt_digest: str | None = None
    criterion: str | None = None
    error_codes: list[str | None] = []


class Record(BaseModel):
    """The votes of one annotator on one document. A list other than `scores` may be missing."""

    document_id: str = Field(coerce_numbers_to_str=True)
    scores: list[float | None] = Field(min_length=1)
    explanations: list[str | None] = []
    errors: list[list[str] | None] = []
    time_stamps: list[Annotated[float, Field(ge=0, lt=_YEAR_10000)] | None] = []
    document_processing_status: list[str | None] = []
    meta_information: MetaInformation = MetaInformation()

    @model_validator(mode="after")
    def _lists_have_one_length(self) -> Record:
        for name in ("explanations", "errors", "time_stamps", "document_processing_status"):
            if len(getattr(self, name)) not in (0, len(self.scores)):
                raise ValueError(f"{name} has {len(getattr(self, name))} entries, scores has {len(self.scores)}")
        return self


def parse_record(row: Mapping[str, Any]) -> Record:
    """A row as a record.

    Raises:
        ValueError: it is malformed.
    """
    try:
        return Record.model_validate(row)
    except ValidationError as error:
        raise ValueError(problems_in(error, "record")) from error


def votes_of(record: Record) -> Iterator[dict[str, Any]]:
    """The `score`, `error`, `reason`, `raw` and `created_at` of each vote."""
    for number, score in enumerate(record.scores):
        problems = _at(record.errors, number) or []
        error = _error_of(record, number)
        seconds = _at(record.time_stamps, number)
        yield {
            "score": score,
            "error": error,
            "reason": None if problems == [error] else "; ".join(problems) or None,
            "raw": _at(record.explanations, number) or None,
            "created_at": datetime.fromtimestamp(seconds, UTC).isoformat() if seconds else None,
        }


def failed_votes(row: Mapping[str, Any]) -> list[bool] | None:
    """Whether each vote of a record failed; None: the row is not a record, for example only ids and scores.

    Raises:
        ValueError: the record is malformed.
    """
    if not {"document_id", "scores"} <= row.keys() or row.keys().isdisjoint({"errors", "document_processing_status"}):
        return None
    try:
        return [vote["error"] is not None for vote in votes_of(parse_record(row))]
    except ValueError as error:
        raise ValueError(f"malformed record: {error}") from error


def _error_of(record: Record, number: int) -> str | None:
    """The error code of a vote; None: its score counts."""
    problems = _at(record.errors, number)
    status = _at(record.document_processing_status, number)
    code: str | None = _at(record.meta_information.error_codes, number)
    if code is None and (problems or status not in (None, "success") or record.scores[number] is None):
        code = _ERROR_CODES.get(status or "", "server_error" if problems else "unparsable_score")
    return code


def _at(values: Sequence[Any], number: int) -> Any:
    return values[number] if number < len(values) else None


def record_of(votes: Sequence[dict[str, Any]], language: str | None, source: str) -> dict[str, Any]:
    """The record of all votes of one annotator on one document, given as annotation rows.

    A failed vote has a null score, its status, and its reason or error code among the errors.
    """
    first = votes[0]
    tokens = sum(vote["completion_tokens"] or 0 for vote in votes)
    seconds = sum(vote["latency_s"] or 0.0 for vote in votes)
    return {
        "document_id": first["document_id"],
        "scores": [vote["score"] for vote in votes],
        "explanations": [vote["raw"] or (not vote["error"] and vote["reason"]) or "" for vote in votes],
        "errors": [[vote["reason"] or vote["error"]] if vote["error"] else [] for vote in votes],
        "time_stamps": [
            int(datetime.fromisoformat(vote["created_at"]).timestamp()) if vote["created_at"] else 0 for vote in votes
        ],
        "document_processing_status": [
            _STATUSES.get(vote["error"], "error_server") if vote["error"] else "success" for vote in votes
        ],
        "meta_information": {
            "prompt_name": first["prompt"],
            "prompt_lang": language or "",
            "model_name": first["annotator"],
            "raw_data_file_path": source,
            "out_tokens_per_second": tokens / seconds if seconds else 0.0,
            "prompt_digest": first["prompt_digest"],
            "criterion": first["criterion"],
            "error_codes": [vote["error"] for vote in votes],
        },
    }
