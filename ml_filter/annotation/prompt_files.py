"""Find prompt files by name, without loading them as prompts."""

from __future__ import annotations

from pathlib import Path

from ml_filter.config import read_yaml
from ml_filter.errors import ConfigError


def prompt_directory() -> Path:
    """The prompts that ship with the project."""
    return Path(__file__).resolve().parents[2] / "configs" / "prompts"


def prompt_file(name_or_file: str) -> Path:
    """Path of a prompt: the given YAML file, or the shipped prompt with the given name.

    Raises:
        ConfigError: no shipped prompt has that name.
    """
    path = Path(name_or_file)
    if path.suffix in (".yaml", ".yml"):
        return path
    path = prompt_directory() / f"{name_or_file}.yaml"
    if not path.exists():
        names = ", ".join(sorted(file.stem for file in prompt_directory().glob("*.yaml")))
        raise ConfigError(f"unknown prompt {name_or_file!r}; use one of {names}, or the path of a .yaml file")
    return path


def criterion_of(name_or_file: str) -> str:
    """The criterion named in a prompt file, without validating the rest of the file.

    Raises:
        ConfigError: the file does not exist or names no criterion.
    """
    path = prompt_file(name_or_file)
    criterion = read_yaml(path).get("criterion")
    if not isinstance(criterion, str):
        raise ConfigError(f"prompt file {path}: criterion is missing")
    return criterion
