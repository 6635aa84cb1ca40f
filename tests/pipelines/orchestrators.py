"""Orchestrators that behave towards the client as remote ones do, and run their steps in this process."""

from __future__ import annotations

import contextlib
from typing import Any

from zenml.orchestrators.local.local_orchestrator import LocalOrchestrator, LocalOrchestratorFlavor


class WaitingOrchestrator(LocalOrchestrator):
    """Waits for the run and does not raise the error of a step, like the Kubernetes orchestrator."""

    def submit_pipeline(self, *args: Any, **kwargs: Any) -> None:
        with contextlib.suppress(Exception):
            super().submit_pipeline(*args, **kwargs)


class SubmittingOrchestrator(LocalOrchestrator):
    """Returns before the first step starts, like any orchestrator with `synchronous=False`."""

    def submit_pipeline(self, *args: Any, **kwargs: Any) -> None:
        self._orchestrator_run_id = "submitted"


class WaitingFlavor(LocalOrchestratorFlavor):
    name = "waiting"
    implementation_class = WaitingOrchestrator


class SubmittingFlavor(LocalOrchestratorFlavor):
    name = "submitting"
    implementation_class = SubmittingOrchestrator
