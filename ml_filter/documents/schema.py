"""The Arrow schemas of the data contracts (docs/data-format.md describes them)."""

from __future__ import annotations

import pyarrow as pa

_ANSWER_FIELDS = [
    pa.field("prompt_tokens", pa.int64()),
    pa.field("completion_tokens", pa.int64()),
    pa.field("latency_s", pa.float64()),
    pa.field("attempts", pa.int32()),
    pa.field("created_at", pa.string()),  # ISO 8601, UTC
]
"""What every answer of an LLM took, and when it came."""

ANNOTATION_SCHEMA = pa.schema(
    [
        pa.field("document_id", pa.string(), nullable=False),
        pa.field("annotator", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("prompt_digest", pa.string(), nullable=False),
        pa.field("criterion", pa.string(), nullable=False),
        pa.field("vote", pa.int32(), nullable=False),
        pa.field("status", pa.string(), nullable=False),  # "scored" or "failed"
        pa.field("score", pa.float64()),  # the parsed answer
        pa.field("expected_score", pa.float64()),  # from token log-probabilities
        pa.field("reason", pa.string()),
        pa.field("error", pa.string()),  # error code of a failed row
        pa.field("raw", pa.string()),
        pa.field("windows", pa.int32(), nullable=False),  # pieces of the text that were asked about
        pa.field("truncated", pa.bool_(), nullable=False),  # whether part of the text was left out
        *_ANSWER_FIELDS,
    ]
)

AGGREGATED_SCHEMA = pa.schema(
    [
        pa.field("document_id", pa.string(), nullable=False),
        pa.field("criterion", pa.string(), nullable=False),
        pa.field("score", pa.float64()),  # null: every vote failed
        pa.field("votes", pa.int32(), nullable=False),  # votes that count
        pa.field("failed_votes", pa.int32(), nullable=False),
        pa.field("disagreement", pa.float64()),  # standard deviation of the votes that count
        pa.field("posterior", pa.list_(pa.float64())),  # dawid-skene: probability of each whole score, lowest first
        pa.field("method", pa.string(), nullable=False),
    ]
)

LABEL_SCHEMA = pa.schema(
    [
        pa.field("document_id", pa.string(), nullable=False),
        pa.field("facet", pa.string(), nullable=False),
        pa.field("labels", pa.list_(pa.string())),  # null: failed; empty: no label of the list fits
        pa.field("annotator", pa.string(), nullable=False),
        pa.field("prompt_digest", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),  # "labelled" or "failed"
        pa.field("error", pa.string()),  # error code of a failed row
        pa.field("reason", pa.string()),  # what is wrong with a failed row
        pa.field("raw", pa.string()),
        pa.field("truncated", pa.bool_(), nullable=False),  # whether part of the text was left out
        *_ANSWER_FIELDS,
    ]
)
