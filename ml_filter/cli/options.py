"""Arguments and options that several commands share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from ml_filter.errors import ConfigError

if TYPE_CHECKING:
    from ml_filter.annotation.config import AnnotateConfig
    from ml_filter.config import StageConfig
    from ml_filter.documents.config import SourceConfig

_SOURCE_HELP = (
    "Files, globs, directories, URLs (Parquet, JSONL or CSV[.gz|.zst], WARC, WET), hf://datasets/OWNER/NAME, or "
    "installed: for the documents on this machine"
)
Sources = Annotated[list[str], typer.Argument(metavar="SOURCE...", help=_SOURCE_HELP, show_default=False)]
OneSource = Annotated[str, typer.Argument(help=_SOURCE_HELP, show_default=False)]
Head = Annotated[
    str,
    typer.Argument(metavar="HEAD", help="Directory made by train, or hf://OWNER/NAME[@REVISION]", show_default=False),
]
Output = Annotated[
    str, typer.Option("--output", "-o", metavar="DIR", help="Directory of the result; an unfinished one is finished")
]
TextColumn = Annotated[str, typer.Option(help="Column that holds the text")]
IdColumn = Annotated[str | None, typer.Option(help="Column that holds the id (default: id, else a hash of the text)")]
Split = Annotated[str, typer.Option(help="Split of a Hub data set")]
Subset = Annotated[str | None, typer.Option(help="Subset (configuration) of a Hub data set")]
LabelColumn = Annotated[str, typer.Option(help="Column that holds the label")]
Criterion = Annotated[str | None, typer.Option(help="Which of several criteria (default: the only one)")]
ScoreRange = Annotated[
    tuple[float, float] | None,
    typer.Option(
        metavar="LOW HIGH",
        help="Lowest and highest score, of labels that do not come from ml-filter annotate (default: 0 5)",
    ),
]
Documents = Annotated[str | None, typer.Option(help="Documents of the scores (default: those that were annotated)")]
Use = Annotated[
    str, typer.Option(help="expected: from log-probabilities where there are any; answer: the parsed answer")
]
GoodFrom = Annotated[float, typer.Option(help="A rounded score at or above counts as good")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1, mps (default: auto)")]
DType = Annotated[str | None, typer.Option(help="auto, float32 or bfloat16 (default: auto)")]

Prompts = Annotated[
    list[str] | None,
    typer.Option("--prompt", help="Name of a prompt in configs/prompts, or a YAML file; several: one --prompt each"),
]
Endpoints = Annotated[
    list[str] | None,
    typer.Option(
        "--endpoint",
        help="OpenAI-compatible base URL, several: one --endpoint each (default: ML_FILTER_ENDPOINT, else the "
        "embedded judge)",
    ),
]
Model = Annotated[str | None, typer.Option(help="Model at the endpoint (default: ML_FILTER_MODEL)")]
MaxConcurrency = Annotated[
    int | None, typer.Option(min=1, help="Most requests in flight; fewer while more bring nothing (default: 256)")
]
Timeout = Annotated[float | None, typer.Option(help="Seconds to wait for an answer (default: 120)")]
MaxFailedShare = Annotated[float | None, typer.Option(min=0, max=1, help="Above it the exit code is 1 (default: 0.05)")]
RetryFailed = Annotated[
    bool | None, typer.Option("--retry-failed", help="Ask the failed documents of an earlier run again")
]
BudgetTokens = Annotated[int | None, typer.Option(min=1, help="Stop before more tokens are used, by each output")]
BudgetUsd = Annotated[
    float | None, typer.Option(min=0, help="Stop before more is spent, by each output; prices come from --config")
]
AtBudget = Annotated[
    str | None,
    typer.Option(help="stop, or finish: what the budget has no room for fails as not_asked (default: stop)"),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="YAML with any setting of the command; options go before it"),
]
AnnotateFile = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="YAML with any setting of annotate; options go before it"),
]


def example(*lines: str) -> str:
    """The examples at the end of a command's --help."""
    return "[bold]Examples[/bold]\n\n" + "\n\n".join(f"$ {line}" for line in lines)


def names_in(listed: str) -> list[str]:
    """The names in a comma-separated option."""
    return [name.strip() for name in listed.split(",") if name.strip()]


def source_config(paths: list[str], text: str, id_column: str | None, split: str, subset: str | None) -> SourceConfig:
    """The source that a command's options describe."""
    from ml_filter.documents.config import SourceConfig

    return SourceConfig(paths=paths, text_column=text, id_column=id_column, split=split, subset=subset)


def annotate_config(file: Path | None, **given: Any) -> AnnotateConfig:
    """The annotation settings of a file, or of its `annotate` section, under those given on the command line."""
    from ml_filter.annotation.config import AnnotateConfig

    return stage_config(AnnotateConfig, "annotate", file, **given)


Config = TypeVar("Config", bound="StageConfig")


def stage_config(
    kind: type[Config], section: str, file: Path | None, *, beside: Sequence[str] = (), **given: Any
) -> Config:
    """The settings of a file, or of a section of it, under those given on the command line.

    Args:
        beside: other sections of which the same command reads what is not of this stage.
    """
    content = file_settings(file)
    if section in content:
        content = settings_in(content, section, file)
    else:
        content = {name: value for name, value in content.items() if name not in beside}
    return _validated(kind, file, content, options_given(**given))


def section_config(kind: type[Config], section: str, file: Path | None, **given: Any) -> Config:
    """The same, of a file that holds other settings as well: those in the section count, and none where it is not."""
    return _validated(kind, file, settings_in(file_settings(file), section, file), options_given(**given))


def file_settings(file: Path | None) -> dict[str, Any]:
    """What a YAML file sets, or the `parameters` of one that is a pipeline's; nothing without a file."""
    from ml_filter.config import read_yaml

    content = read_yaml(file) if file else {}
    return settings_in(content, "parameters", file) if "parameters" in content else content


def _validated(kind: type[Config], file: Path | None, content: dict[str, Any], given: dict[str, Any]) -> Config:
    from pydantic import ValidationError

    from ml_filter.config import problems_in

    try:
        return kind.model_validate({**content, **given})
    except ValidationError as error:
        if file is None or all(problem["loc"][:1] and problem["loc"][0] in given for problem in error.errors()):
            raise
        raise ConfigError(f"configuration file {file}: {problems_in(error, error.title)}") from error


def settings_in(content: dict[str, Any], section: str, file: Path | None) -> dict[str, Any]:
    """A section of a file, which may be empty or left out.

    Raises:
        ConfigError: it holds something else than settings.
    """
    found = content.get(section) or {}
    if not isinstance(found, dict):
        raise ConfigError(
            f"configuration file {file}: {section}: {found!r} is no setting; its settings go below it, each as "
            "`name: value`"
        )
    return found


def options_given(**options: Any) -> dict[str, Any]:
    """The options that were given: those left out are None, or a list of nothing."""
    return {name: value for name, value in options.items() if value not in (None, [])}
