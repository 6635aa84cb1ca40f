"""Where prompt files are."""

from __future__ import annotations

from pathlib import Path

from ml_filter.config import read_yaml
from ml_filter.errors import ConfigError


def prompt_directory() -> Path:
    """The prompts that ship with the project."""
    return Path(__file__).resolve().parents[1] / "configs" / "prompts"


def prompt_file(name_or_file: str) -> Path:
    """The file of a prompt: a YAML file, or a shipped prompt by its name.

    Raises:
        ConfigError: no shipped prompt has that name.
    """
    path = Path(name_or_file)
    if path.suffix in (".yaml", ".yml"):
        return path
    path = prompt_directory() / f"{name_or_file}.yaml"
    if not path.exists():
        known = ", ".join(sorted(p.stem for p in prompt_directory().glob("*.yaml")))
        raise ConfigError(f"no prompt named {name_or_file!r}; there are {known}, or give the path of a .yaml file")
    return path


def criterion_of(name_or_file: str) -> str:
    """The criterion that a prompt scores, as its file says; whether it is a prompt is seen when it is loaded.

    Raises:
        ConfigError: there is no such file, or it names no criterion.
    """
    path = prompt_file(name_or_file)
    criterion = read_yaml(path).get("criterion")
    if not isinstance(criterion, str):
        raise ConfigError(f"prompt file {path} names no criterion")
    return criterion
