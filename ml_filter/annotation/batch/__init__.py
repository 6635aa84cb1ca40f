"""Annotate through OpenAI batch files: write the requests, submit them, collect the answers.

A batch directory contains `requests-*.jsonl`; `requests.sqlite`, which maps each `custom_id` to its document, question
and window; `submitted.json`, the state of each file at the provider; and `results/`. Answers are matched by
`custom_id`, never by position, and go through a ledger into a normal annotations directory. Only submitting needs a
provider: vLLM's `run_batch` reads the same files, and `collect` reads its results.

Exactly once: each file is uploaded, and made a batch, once. Both intentions are written to disk before the request.
After a kill in between, the provider's lists of files and batches show whether the request arrived. The unanswered
requests of a batch that ended early, and only those, are submitted again on demand.
"""

from ml_filter.annotation.batch.collection import batch_usd, collect_batch
from ml_filter.annotation.batch.files import write_batch
from ml_filter.annotation.batch.submission import Submission, batch_status, submit_batch

__all__ = ["Submission", "batch_status", "batch_usd", "collect_batch", "submit_batch", "write_batch"]
