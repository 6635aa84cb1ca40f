"""Which benchmarks models are measured on."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ml_filter.config import Cli, StageConfig
from ml_filter.mongodb import SafePath


class BenchmarkConfig(StageConfig):
    """Benchmarks, which lm-eval runs; any of them needs the extra proof."""

    lm_eval_tasks: Annotated[list[str], Cli(comma_separated=True)] = Field(
        [], description="tasks of lm-eval to run on every model, such as hellaswag (needs the extra proof)"
    )
    lm_eval_directory: str | None = Field(None, description="directory with further tasks of lm-eval as YAML")
    multiple_choice: Annotated[list[SafePath], Cli(metavar="FILE")] = Field(
        [],
        description="tables of questions with the columns question, choices and answer, for lm-eval to run on every "
        "model (needs the extra proof)",
    )

    @property
    def has_benchmarks(self) -> bool:
        """Whether there is anything to run."""
        return bool(self.lm_eval_tasks or self.multiple_choice)
