"""Arguments and options that several commands share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

if TYPE_CHECKING:
    from ml_filter.settings import AnnotateConfig, SourceConfig, StageConfig

_SOURCE_HELP = (
    "Files, globs, directories, URLs (Parquet, JSONL or CSV[.gz|.zst], WARC, WET), hf://datasets/OWNER/NAME, or "
    "installed: for the documents on this machine"
)
Sources = Annotated[list[str], typer.Argument(metavar="SOURCE...", help=_SOURCE_HELP, show_default=False)]
OneSource = Annotated[str, typer.Argument(help=_SOURCE_HELP, show_default=False)]
Head = Annotated[
    str,
    typer.Argument(metavar="HEAD", help="Directory made by train, or hf://OWNER/NAME@REVISION", show_default=False),
]
Output = Annotated[
    str, typer.Option("--output", "-o", metavar="DIR", help="Directory of the result; an unfinished one is finished")
]
TextColumn = Annotated[str, typer.Option(help="Column that holds the text")]
IdColumn = Annotated[str | None, typer.Option(help="Column that holds the id (default: id, else a hash of the text)")]
Split = Annotated[str, typer.Option(help="Split of a Hub data set")]
Subset = Annotated[str | None, typer.Option(help="Subset (configuration) of a Hub data set")]
LabelColumn = Annotated[str, typer.Option(help="Column that holds the label")]

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
RetryFailed = Annotated[bool, typer.Option("--retry-failed", help="Ask the failed documents of an earlier run again")]
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
    from ml_filter.settings import SourceConfig

    return SourceConfig(paths=paths, text_column=text, id_column=id_column, split=split, subset=subset)


def annotate_config(file: Path | None, **given: Any) -> AnnotateConfig:
    """The annotation settings of a file, or of its `annotate` section, under those given on the command line."""
    from ml_filter.settings import AnnotateConfig

    return stage_config(AnnotateConfig, "annotate", file, **given)


Config = TypeVar("Config", bound="StageConfig")


def stage_config(
    kind: type[Config], section: str, file: Path | None, *, beside: Sequence[str] = (), **given: Any
) -> Config:
    """The settings of a file, or of a section of it, under those given on the command line.

    Args:
        beside: other sections of which the same command reads what is not of this stage.
    """
    content = _content(file)
    content = _section(file, content, section, {name: one for name, one in content.items() if name not in beside})
    return _validated(kind, file, content, _given(given))


def section_config(kind: type[Config], section: str, file: Path | None, **given: Any) -> Config:
    """The same, of a file that holds other settings as well: those in the section count, and none where it is not."""
    return _validated(kind, file, _section(file, _content(file), section, {}), _given(given))


def _content(file: Path | None) -> dict[str, Any]:
    from ml_filter.settings import read_yaml

    content = read_yaml(file) if file else {}
    return _section(file, content, "parameters", content)


def _section(file: Path | None, content: dict[str, Any], name: str, other: dict[str, Any]) -> dict[str, Any]:
    """The settings of a section; `other` where the file has none."""
    from ml_filter.errors import ConfigError

    section = content.get(name, other)
    if not isinstance(section, dict | None):
        raise ConfigError(f"configuration file {file}: {name} holds no settings, but {section!r}")
    return section or {}


def _validated(kind: type[Config], file: Path | None, content: dict[str, Any], given: dict[str, Any]) -> Config:
    from pydantic import ValidationError

    from ml_filter.errors import ConfigError
    from ml_filter.settings import problems_in

    try:
        return kind.model_validate({**content, **given})
    except ValidationError as error:
        if file is None or all(problem["loc"][:1] and problem["loc"][0] in given for problem in error.errors()):
            raise
        raise ConfigError(f"configuration file {file}: {problems_in(error, error.title)}") from error


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}
