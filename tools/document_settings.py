"""Write docs/settings.md from the configuration models. The body of the poe task `document-settings`."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from enum import Enum
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Interval, Le, Lt, MinLen
from pydantic.fields import FieldInfo

from ml_filter.config import Settings, StageConfig

PAGE = Path(__file__).resolve().parents[1] / "docs" / "settings.md"
_MODULES = (
    "documents.config",
    "prepare.config",
    "annotation.config",
    "agreement.config",
    "heads.config",
    "evaluation.config",
    "scoring.config",
    "selection.config",
    "publishing.config",
    "serving.config",
    "pipeline.config",
    "tracking",
)
_NAMES = {str: "text", int: "integer", float: "number", bool: "true or false", Path: "path"}
_INTRODUCTION = """# Settings

Generated from the configuration models by `poetry poe document-settings`. Each setting is
an option of the commands that use it, a key of their YAML file (`--config`), and a `section.name=value` argument.
"""


def settings_page() -> str:
    """The page: the environment variables, then one table for each configuration."""
    parts = [_INTRODUCTION, "## Environment variables\n", _table(_environment())]
    for module in _MODULES:
        for config in _configs(module):
            summary = (config.__doc__ or "").partition("\n\n")[0].replace("\n", " ").strip()
            parts.append(f"## {config.__name__}\n\n{summary}\n")
            parts.append(_table(_rows(config)))
    return "\n".join(parts)


def main() -> int:
    """Write the page."""
    PAGE.write_text(settings_page())
    return 0


def _configs(module_name: str) -> Iterator[type[StageConfig]]:
    module = import_module(f"ml_filter.{module_name}")
    for value in vars(module).values():
        is_config = isinstance(value, type) and issubclass(value, StageConfig) and value.__module__ == module.__name__
        if is_config and not value.__name__.startswith("_"):
            yield value


def _rows(config: type[StageConfig]) -> Iterator[tuple[str, str, str, str]]:
    for name, field in config.model_fields.items():
        yield f"`{name}`", _type_name(field.annotation, field.metadata), _default(field), field.description or ""


def _environment() -> Iterator[tuple[str, str, str, str]]:
    prefix = Settings.model_config.get("env_prefix", "")
    for name, field in Settings.model_fields.items():
        variable = field.validation_alias if isinstance(field.validation_alias, str) else f"{prefix}{name}".upper()
        yield f"`{variable}`", "", "" if field.is_required() else _default(field), field.description or ""


def _table(rows: Iterator[tuple[str, str, str, str]]) -> str:
    lines = ["| setting | type | default | meaning |", "|---|---|---|---|"]
    lines += [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    return "\n".join(lines) + "\n"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    default = field.get_default()
    if default is None or field.default_factory is not None:
        return ""
    if isinstance(default, StageConfig):
        return "see its defaults"
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


def _type_name(annotation: Any, metadata: list[Any]) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(_type_name(part, metadata) for part in arguments if part is not type(None))
    if metadata_of := getattr(annotation, "__metadata__", None):
        return _type_name(arguments[0], [*metadata, *metadata_of])
    if origin in (list, tuple):
        return f"list of {_type_name(arguments[0], [])}"
    if origin is dict:
        return f"mapping of {_type_name(arguments[0], [])} to {_type_name(arguments[1], [])}"
    if isinstance(annotation, type) and issubclass(annotation, StageConfig):
        return f"[{annotation.__name__}](#{annotation.__name__.lower()})"
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return ", ".join(f"`{member.value}`" for member in annotation)
    return _NAMES.get(annotation, "any") + _bounds(metadata)


def _bounds(metadata: list[Any]) -> str:
    signs: list[str] = []
    for constraint in metadata:
        for bound in constraint if isinstance(constraint, Interval) else [constraint]:
            match bound:
                case Ge(ge=value):
                    signs.append(f"≥ {value}")
                case Gt(gt=value):
                    signs.append(f"> {value}")
                case Le(le=value):
                    signs.append(f"≤ {value}")
                case Lt(lt=value):
                    signs.append(f"< {value}" if not isinstance(value, int) or value < 2**40 else "")
                case MinLen():
                    pass
    return " " + ", ".join(sign for sign in signs if sign) if any(signs) else ""


if __name__ == "__main__":
    sys.exit(main())
