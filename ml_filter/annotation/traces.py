"""Prompts and answers of a sampled share of the documents, sent to Opik.

A document is sampled by a hash of its id, so that all its calls are sent, in every run. Sending is done by a thread and
never delays or fails an annotation: what does not fit into the queue, and whatever Opik refuses, is left out.
"""

from __future__ import annotations

import hashlib
import os
import threading
from datetime import UTC, datetime, timedelta
from queue import Empty, Full, Queue
from typing import Any

from loguru import logger

from ml_filter.annotation.failures import RequestFailed
from ml_filter.annotation.plan import Call
from ml_filter.annotation.responses import Answer
from ml_filter.extras import how_to_install

_QUEUED = 1000
_FLUSH_S = 10


class Traces:
    """Sends calls to the Opik server that Opik's settings name (OPIK_URL_OVERRIDE, OPIK_API_KEY, OPIK_PROJECT_NAME).

    Args:
        kind: of what is asked, the start of the name of each trace.
        share: of the documents; 0: nothing is sent, and Opik need not be installed.
    """

    def __init__(self, annotator: str, kind: str, share: float) -> None:
        self._annotator, self._kind, self._share = annotator, kind, share
        self._queue: Queue[dict[str, Any]] = Queue(_QUEUED)
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._send, name="traces", daemon=True)
        self._left_out = 0

    def __enter__(self) -> Traces:
        if self._share > 0:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._share > 0:
            self._is_over.set()
            self._thread.join(2 * _FLUSH_S)
            if self._left_out:
                logger.warning(f"{self._left_out:,} traces were left out, because Opik was too slow or refused them")

    def add(self, call: Call, outcome: Answer | RequestFailed) -> None:
        """Send a call, if its document is sampled."""
        if not is_sampled(call.key.document_id, self._share):
            return
        try:
            self._queue.put_nowait(self._trace(call, outcome))
        except Full:
            self._left_out += 1

    def _trace(self, call: Call, outcome: Answer | RequestFailed) -> dict[str, Any]:
        """The arguments of Opik.trace."""
        question, now = call.question, datetime.now(UTC)
        metadata = {
            **call.key._asdict(),
            "window": call.window,
            "windows": call.windows,
            "annotator": self._annotator,
            "prompt": question.name,
            "prompt_digest": question.digest,
            "criterion": question.criterion,
            "attempts": outcome.attempts,
            "prompt_tokens": outcome.prompt_tokens,
            "completion_tokens": outcome.completion_tokens,
        }
        if isinstance(outcome, Answer):
            output, seconds = {"text": outcome.text}, outcome.latency_s
        else:
            output, seconds = {"error": outcome.code, "reason": str(outcome)}, 0.0
        return {
            "name": f"{self._kind}: {question.name}",
            "start_time": now - timedelta(seconds=seconds),
            "end_time": now,
            "input": {"system": question.system, "prompt": question.render(call.piece)},
            "output": output,
            "metadata": metadata,
            "tags": [self._annotator, question.name],
        }

    def _send(self) -> None:
        try:
            os.environ.setdefault("OPIK_SENTRY_ENABLE", "false")  # it would report errors to a third party
            import opik
        except ImportError:
            logger.warning(f"Opik is not installed, so no traces are sent; {how_to_install('traces')}")
            self._drop()
            return
        try:
            client = opik.Opik()
            while not (self._is_over.is_set() and self._queue.empty()):
                try:
                    trace = self._queue.get(timeout=0.2)
                except Empty:
                    continue
                client.trace(**trace)
            client.end(timeout=_FLUSH_S)
        except Exception as error:  # whatever Opik or its server does, the annotation goes on
            logger.warning(f"Traces cannot be sent ({type(error).__name__}: {error}); the annotation goes on")
            self._drop()

    def _drop(self) -> None:
        """Send nothing more."""
        self._share = 0.0


def is_sampled(document_id: str, share: float) -> bool:
    """Whether a document belongs to the share; a larger share includes the documents of a smaller one."""
    digest = hashlib.blake2b(document_id.encode("utf-8", "surrogatepass"), digest_size=8, person=b"traces").digest()
    return int.from_bytes(digest, "big") < share * 2**64
