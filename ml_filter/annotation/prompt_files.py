"""Find prompt and label files by name, without loading them."""

from __future__ import annotations

from pathlib import Path

from ml_filter.config import read_yaml
from ml_filter.errors import ConfigError

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
PROMPTS, LABELS = CONFIGS / "prompts", CONFIGS / "labels"
GENERATION = PROMPTS / "generation"
"""The prompts for scores, the label lists and the prompts for generation that ship with the project."""


def shipped_file(name_or_file: str, directory: Path, kind: str) -> Path:
    """The given YAML file, or the file with the given name in a directory of shipped files.

    Raises:
        ConfigError: no shipped file has that name.
    """
    path = Path(name_or_file)
    if path.suffix in (".yaml", ".yml"):
        return path
    path = directory / f"{name_or_file}.yaml"
    if not path.exists():
        names = ", ".join(sorted(file.stem for file in directory.glob("*.yaml")))
        raise ConfigError(f"unknown {kind} {name_or_file!r}; use one of {names}, or the path of a .yaml file")
    return path


def prompt_file(name_or_file: str) -> Path:
    """Path of a prompt; raises as `shipped_file`."""
    return shipped_file(name_or_file, PROMPTS, "prompt")


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
