"""Commands whose options are the settings of their configurations.

A command declares its arguments, its configurations and its body; every setting becomes an option:

    @command("ml-filter sample installed: --size 500 --output runs/sample")
    def sample(source: Sources, output: Output, sample: SampleConfig) -> None:

A configuration is built from its defaults, its section in the YAML file of --config, --set and the options, each
overriding the one before. The first configuration may also be the whole file. (CliApp of pydantic-settings cannot read
a file that is named on the command line, and has no panels or examples.)
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import wraps
from types import NoneType
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

import typer
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from rich.markup import escape

from ml_filter import __version__
from ml_filter.annotation.config import AskConfig
from ml_filter.config import (
    Cli,
    StageConfig,
    override_about,
    parse_override,
    problem_text,
    read_settings,
    with_overrides,
)
from ml_filter.documents.config import SourceConfig
from ml_filter.errors import ConfigError
from ml_filter.heads.config import EngineConfig

Body = TypeVar("Body", bound=Callable[..., None])
FileSettings = dict[str, Any]

_PANELS: dict[type, str] = {SourceConfig: "Source", AskConfig: "LLM", EngineConfig: "Encoder"}
_TYPES: dict[str, Any] = {"integer": int, "number": float, "string": str, "boolean": bool}
_METAVARS: dict[Any, str] = {int: "N", float: "X", str: "TEXT"}
_CONFIG_FILE = typer.Option("--config", metavar="FILE", help="YAML file with settings; options override it")


app = typer.Typer(
    name="ml-filter",
    help="The quality filter for pretraining corpora: sample, annotate by LLM, train a head, score, keep the best.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _start(
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log every failed document")] = False,
) -> None:
    from ml_filter.logs import configure_logging

    if version:
        print(f"ml-filter {__version__}")
        raise typer.Exit
    configure_logging(level="DEBUG" if verbose else "INFO")


@dataclass(frozen=True)
class Options:
    """Which settings of a configuration a command offers, as in `Annotated[SourceConfig, Options("SOURCE...")]`.

    Attributes:
        argument: metavar of a positional argument for the setting `paths`; ending in `...`, it takes several values.
            The file of --config has no say in a configuration with an argument.
        only: settings that become options; empty: all.
        skip: settings that do not become options.
        beside: a configuration whose sections may be in the same file, for the body to read from its FileSettings.
    """

    argument: str | None = None
    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    beside: type[StageConfig] | None = None


def command(*examples: str, name: str | None = None, group: typer.Typer = app) -> Callable[[Body], Body]:
    """Register a function as a command; the examples are shown at the end of its --help."""
    epilog = "[bold]Examples[/bold]\n\n" + "\n\n".join(f"$ {escape(line)}" for line in examples)

    def register(body: Body) -> Body:
        paragraphs = inspect.cleandoc(body.__doc__ or "").split("\n\n")
        text = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
        group.command(name, help=text, epilog=epilog)(_with_options(body))
        return body

    return register


# --- Arguments and options that several commands share --------------------------------------------------------------


def _source_at(path: str) -> SourceConfig:
    return SourceConfig(paths=[path])


Sources = Annotated[SourceConfig, Options("SOURCE...")]
Docs = Annotated[SourceConfig, Options("DOCS")]
Labels = Annotated[SourceConfig, Options("LABELS")]
Head = Annotated[
    str, typer.Argument(metavar="HEAD", help="Directory or URL made by train, or hf://OWNER/NAME\\[@REVISION]")
]
Output = Annotated[
    str, typer.Option("--output", "-o", metavar="DIR", help="Directory of the result; an unfinished run is resumed")
]
Documents = Annotated[
    SourceConfig | None,
    typer.Option(
        parser=_source_at, metavar="SOURCE", help="Documents of the scores (default: those that were annotated)"
    ),
]


# --- From settings to options ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Option:
    """An option or argument. `path` leads to its setting, with dots; `convert` makes the setting from its value."""

    name: str
    path: str
    parameter: inspect.Parameter
    convert: Callable[[Any], Any]


@dataclass(frozen=True)
class _Shape:
    """How the values of a setting are written: a scalar, several, or several pairs NAME=VALUE."""

    type: Any
    many: bool = False
    pairs: bool = False
    choices: tuple[str, ...] = ()
    bounds: Mapping[str, Any] = field(default_factory=dict)


def _shape(schema: dict[str, Any]) -> _Shape | None:
    """The shape of a JSON schema; None for what a command line cannot express: sections, tuples, nested mappings."""
    parts = schema.get("anyOf", [schema])
    for part in parts:
        if "prefixItems" in part:
            return _Shape(tuple[float, float])  # a range
        if part.get("type") == "array":
            return (inner := _shape(part["items"])) and replace(inner, many=True, bounds={})
        values = part.get("additionalProperties")
        if isinstance(values, dict) and _shape(values):
            return _Shape(str, many=True, pairs=True)
    scalars = [part for part in parts if part.get("type") in _TYPES]
    if len(scalars) != 1:
        return _Shape(str) if scalars else None
    bounds = {short: scalars[0][name] for short, name in (("min", "minimum"), ("max", "maximum")) if name in scalars[0]}
    if scalars[0]["type"] == "integer" and "exclusiveMinimum" in scalars[0]:
        bounds["min"] = scalars[0]["exclusiveMinimum"] + 1
    return _Shape(_TYPES[scalars[0]["type"]], choices=tuple(scalars[0].get("enum", ())), bounds=bounds)


def _sentence(text: str) -> str:
    """A description as help. A first word that is a value, as in `auto, cpu or cuda`, keeps its case."""
    first = text.partition(" ")[0].rstrip(",")
    return escape(text[:1].upper() + text[1:] if first.isalpha() and first not in ("auto", "unset") else text)


def _keyword(name: str, annotation: Any, default: Any = inspect.Parameter.empty) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


def _option(prefix: str, path: str, schema: dict[str, Any], cli: Cli, panel: str | None) -> _Option | None:
    shape = _shape(schema) or (_Shape(str, many=True) if cli.name else None)
    if shape is None:
        return None
    default, flag = schema.get("default"), shape.type is bool
    flipped = not default
    name = cli.name or f"--{'no-' if flag and default else ''}{path.replace('_', '-')}"
    description = ("do not " if flag and default else "") + schema.get("description", "")
    several = "repeatable or comma-separated" if cli.comma_separated else "repeatable" if shape.many else ""
    metavar = "NAME=VALUE" if shape.pairs else "|".join(shape.choices) or _METAVARS.get(shape.type)
    info = typer.Option(
        name,
        help="; ".join(filter(None, [_sentence(description), several]))
        + (r" \[required here or in --config]" if schema.get("required") else ""),
        metavar="" if flag else cli.metavar or metavar,
        show_default=not flag and default not in (None, [], {}),
        rich_help_panel=panel,
        **shape.bounds,
    )

    def convert(value: Any) -> Any:
        if cli.comma_separated:
            return [part.strip() for item in value for part in item.split(",") if part.strip()]
        return dict(_pair(name, item) for item in value) if shape.pairs else flipped if flag else value

    kind: Any = shape.type  # choices are checked by pydantic, whose error is the better one
    if shape.many:
        kind, default = list[kind], [default] if isinstance(default, str) else list(default or [])
    elif flag:
        default = False
    else:
        kind |= None
    return _Option(
        name, path, _keyword(f"{prefix}__{path.replace('.', '__')}", Annotated[kind, info], default), convert
    )


def _pair(option: str, text: str) -> tuple[str, str]:
    name, equals, value = text.rpartition("=")
    if not equals:
        raise typer.BadParameter(f"{option} takes NAME=VALUE, not {text!r}")
    return name, value


def _argument(prefix: str, metavar: str, description: str, optional: bool) -> _Option:
    many = metavar.endswith("...")
    info = typer.Argument(metavar=metavar, help=_sentence(description), show_default=False)
    kind: Any = list[str] if many else str
    kind, default = (kind | None, None) if optional else (kind, inspect.Parameter.empty)
    convert = list if many else lambda path: [path]
    return _Option(metavar, "paths", _keyword(f"{prefix}__paths", Annotated[kind, info], default), convert)


def _options(prefix: str, config: type[StageConfig], chosen: Options) -> Iterator[_Option]:
    """The options of a configuration: first the settings that it declares, then the inherited ones."""
    schema = config.model_json_schema()
    own = inspect.get_annotations(config)
    for name, setting in sorted(config.model_fields.items(), key=lambda item: item[0] not in own):
        if name in chosen.skip or (chosen.only and name not in chosen.only):
            continue
        cli = _cli(setting)
        panel = _PANELS.get([parent for parent in config.__mro__ if name in getattr(parent, "model_fields", {})][-1])
        section = _section(setting.annotation) if cli.options else None
        if section is None:
            settings = {name: ({**schema["properties"][name], "required": setting.is_required()}, cli)}
        else:
            inner = section.model_json_schema()["properties"]
            if panel is None and len(cli.options) > 1 and f"--{name}" not in cli.options.values():
                panel = _sentence((setting.description or name).partition(" (")[0].partition(";")[0])
            settings = {}
            for part, option_name in cli.options.items():
                part_schema, part_cli = inner[part], replace(_cli(section.model_fields[part]), name=option_name)
                if option_name == f"--{name}":  # it stands for the section, as --gold does for gold.paths
                    part_schema = {**part_schema, "description": setting.description or "", "default": None}
                    part_schema["required"] = setting.is_required()
                    part_cli = replace(part_cli, metavar=cli.metavar)
                settings[f"{name}.{part}"] = (part_schema, part_cli)
        for path, (part_schema, part_cli) in settings.items():
            if option := _option(prefix, path, part_schema, part_cli, panel):
                yield option


def _cli(setting: FieldInfo) -> Cli:
    return next((mark for mark in setting.metadata if isinstance(mark, Cli)), Cli())


def _section(annotation: Any) -> type[StageConfig] | None:
    """The configuration class in `Section`, `Section | None` or `list[Section]`."""
    if isinstance(annotation, type) and issubclass(annotation, StageConfig):
        return annotation
    return next((section for part in get_args(annotation) if (section := _section(part))), None)


# --- From options to configurations ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Config:
    """A parameter of a body that is a configuration. `optional`: it is None when none of its options is given."""

    section: str
    type: type[StageConfig]
    chosen: Options
    optional: bool
    options: list[_Option]


def _config(name: str, hint: Any) -> _Config | None:
    marks = getattr(hint, "__metadata__", ())
    config, chosen = _section(hint), next((mark for mark in marks if isinstance(mark, Options)), Options())
    if config is None or any(isinstance(mark, typer.models.ParameterInfo) for mark in marks):
        return None
    optional = NoneType in get_args(get_args(hint)[0] if marks else hint)
    options = list(_options(name, config, Options(skip=("paths",)) if chosen.argument else chosen))
    if chosen.argument:
        options.insert(0, _argument(name, chosen.argument, config.model_fields["paths"].description or "", optional))
    return _Config(name, config, chosen, optional, options)


def _with_options(body: Callable[..., None]) -> Callable[..., None]:
    """The body as Typer sees it: its configurations are replaced by their options."""
    hints = get_type_hints(body, include_extras=True)
    configs: list[_Config] = []
    first, last = [_keyword("context", typer.Context)], []
    for name, parameter in inspect.signature(body).parameters.items():
        if hints[name] == FileSettings:
            continue
        if config := _config(name, hints[name]):
            configs.append(config)
            sources = config.chosen.argument is not None
            first += [option.parameter for option in config.options[: 1 if sources else None]]
            last += [option.parameter for option in config.options[1:] if sources]
        else:
            first.append(_keyword(name, hints[name], parameter.default))
    in_file = [config for config in configs if not config.chosen.argument]
    if in_file:
        first += [
            _keyword("config_file", Annotated[str | None, _CONFIG_FILE], None),
            _keyword("overrides", Annotated[list[str], _set_option(in_file)], []),
        ]

    @wraps(body)
    def run(context: typer.Context, **values: Any) -> None:
        file, overrides = values.pop("config_file", None), values.pop("overrides", [])
        settings = _file_settings(file, overrides, in_file) if in_file else {}
        arguments = {name: settings if hint == FileSettings else values.get(name) for name, hint in hints.items()}
        for config in configs:
            used = {
                option.name: (option.path, option.convert(values[option.parameter.name]))
                for option in config.options
                if getattr(context.get_parameter_source(option.parameter.name), "name", "") == "COMMANDLINE"
            }
            origins = {name: f"--set {name}" for name, _ in map(parse_override, overrides)}
            origins |= {path: name for name, (path, _) in used.items()}
            arguments[config.section] = _build(config, file, settings, dict(used.values()), origins)
        del arguments["return"]
        body(**arguments)

    run.__signature__ = inspect.Signature([*first, *last])  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in [*first, *last]}
    return run


def _set_option(configs: list[_Config]) -> Any:
    """The option --set. Its help names the settings without an option."""
    main = configs[0]
    has_option = {option.path.partition(".")[0] for option in main.options}
    others = [
        f"{name}.*" if _section(setting.annotation) else name
        for name, setting in main.type.model_fields.items()
        if name not in has_option
    ]
    text = f"any setting, nested ones with dots; without an option: {', '.join(others)}" if others else "any setting"
    return typer.Option("--set", metavar="NAME=VALUE", help=_sentence(f"{text}; repeatable"))


def _file_settings(file: str | None, overrides: list[str], configs: list[_Config]) -> FileSettings:
    """The sections of the file with --set merged in; those outside a section are of the first configuration."""
    main, others = configs[0], {config.section for config in configs[1:]}
    if main.chosen.beside:
        others |= main.chosen.beside.model_fields.keys() - {main.section}
    settings = read_settings(file) if file else {}
    if main.section not in settings:
        own = {name: value for name, value in settings.items() if name not in others}
        settings = {name: value for name, value in settings.items() if name in others} | {main.section: own}
    merged = []
    for name, value in map(parse_override, overrides):
        start = name.partition(".")[0]
        inside = start in main.type.model_fields or start not in others
        merged.append((f"{main.section}.{name}" if inside else name, value))
    return with_overrides(settings, merged)


def _build(
    config: _Config, file: str | None, settings: FileSettings, values: dict[str, Any], origins: dict[str, str]
) -> Any:
    """The configuration from the file's settings and the values of options, by path.

    `origins` names the option that set a path.
    """
    content = {} if config.chosen.argument else settings.get(config.section) or {}
    if config.optional and not values and not content:
        return None
    if not isinstance(content, dict):
        raise ConfigError(
            f"configuration file {file}: {config.section} is {content!r}; write its settings below it as `name: value`"
        )
    # An option for part of a section replaces a section that is written in short, such as `quota: language`.
    short = {path.partition(".")[0] for path in values if "." in path}
    content = {name: value for name, value in content.items() if name not in short or isinstance(value, dict)}
    try:
        return config.type.model_validate(with_overrides(content, values.items()))
    except ValidationError as error:
        options = {option.path.partition(".")[0]: option.name for option in reversed(config.options)}
        problems = [_problem(details, options, origins, file) for details in error.errors()]
        raise ConfigError("; ".join(problems)) from error


def _problem(details: ErrorDetails, options: dict[str, str], origins: dict[str, str], file: str | None) -> str:
    """What is wrong, with the option or the file that it comes from."""
    location = [str(part) for part in details["loc"]]
    paths = [".".join(location[:length]) for length in range(len(location), 0, -1)]
    if details["type"] == "missing" and paths and paths[0] in options:
        return f"missing option {options[paths[0]]}"
    override = override_about(details, origins)
    if override is not None:
        origin = origins[override]
    else:
        origin = ": ".join([*([f"configuration file {file}"] if file else []), *paths[:1]])
    return f"{origin}: {problem_text(details)}" if origin else problem_text(details)
