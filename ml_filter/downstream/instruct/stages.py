"""The stages behind a result, found by the lineage of their directories, and the budget of tokens that they share."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import TypeVar

from ml_filter.annotation.config import AskConfig
from ml_filter.documents.lineage import find_source_manifest
from ml_filter.documents.manifest import Manifest
from ml_filter.errors import TooManyFailures

CHUNKS = "chunks"
"""Kind of the directories that the chain begins with."""
_DIGEST = re.compile(r"-[0-9a-f]{8}$")
Config = TypeVar("Config", bound=AskConfig)


def stages_of(*manifests: Manifest) -> list[Manifest]:
    """The directories that results come from, from the chunks on, and the results; each once, parents first."""
    stages: dict[str, Manifest] = {}
    for manifest in manifests:
        stages.update((stage.root, stage) for stage in _with_parents(manifest) if stage.root not in stages)
    return list(stages.values())


def _with_parents(manifest: Manifest) -> Iterator[Manifest]:
    if manifest.kind != CHUNKS:
        for parent in manifest.parents:
            source = find_source_manifest(parent.path)
            if source is not None and source.digest == parent.digest:
                yield from _with_parents(source)
    yield manifest


def name_of(stage: Manifest) -> str:
    """The name of a directory without its digest, such as `triples-0`."""
    return _DIGEST.sub("", PurePosixPath(stage.root).name)


def tokens_of(stage: Manifest) -> int:
    """The tokens that a stage used, of prompts and answers."""
    return stage.counts.get("prompt_tokens", 0) + stage.counts.get("completion_tokens", 0)


class SharedBudget:
    """A number of tokens for all stages together; None: no limit."""

    def __init__(self, tokens: int | None) -> None:
        self.tokens = tokens

    def share(self, config: Config, *before: Manifest) -> Config:
        """The configuration with what the stages behind `before` have left of the budget.

        Raises:
            TooManyFailures: nothing is left.
        """
        if self.tokens is None:
            return config
        used = sum(map(tokens_of, stages_of(*before)))
        if used >= self.tokens:
            raise TooManyFailures(
                f"the budget of {self.tokens:,} tokens is used up: the stages so far used {used:,}. Run again with a "
                "higher budget_tokens; finished stages are not repeated"
            )
        return config.model_copy(update={"budget_tokens": self.tokens - used})
