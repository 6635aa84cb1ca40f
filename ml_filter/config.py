"""Settings of the environment, the base of every configuration, and YAML files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from ml_filter.errors import ConfigError

Seed = Annotated[int, Field(ge=0, lt=2**63)]


class Settings(BaseSettings):
    """What the environment provides. Read when called for, never at import."""

    model_config = SettingsConfigDict(env_prefix="ML_FILTER_", env_file=".env", extra="ignore")

    cache_dir: Path = Field(
        default_factory=lambda: Path.home() / ".cache" / "ml_filter",
        description="where the embedded annotator's weights are kept",
    )
    embedding_dir: Path = Field(
        default_factory=lambda data: data["cache_dir"] / "embeddings",
        description="where the embeddings of labelled documents are kept, for the next head",
    )
    endpoint: str | None = Field(
        None, description="OpenAI-compatible base URL, or several with commas; unset: the embedded annotator"
    )
    model: str | None = Field(None, description="model name at the endpoint")
    api_key: SecretStr | None = Field(None, description="key of the endpoint")
    comet_api_key: SecretStr | None = Field(None, validation_alias="COMET_API_KEY")


class StageConfig(BaseModel):
    """Base of the stage configurations: unknown keys are refused, so that a typo is an error.

    What was given is not repeated in errors: it may be a key in the wrong place."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


def flat_settings(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by name, those of a section with its name and a dot before them."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        of = f"{prefix}{name}"
        found |= flat_settings(value, f"{of}.") if isinstance(value, Mapping) else {of: value}
    return found


def problems_in(error: ValidationError, whole: str) -> str:
    """What is wrong with which setting, in one line; `whole` names what was validated, for problems of no one field."""
    return "; ".join(
        f"{'.'.join(map(str, e['loc'])) or whole}: {e['msg'].removeprefix('Value error, ')}" for e in error.errors()
    )


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ConfigError: the file does not exist, cannot be read or holds no mapping.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"configuration file {path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"configuration file {path} cannot be read as UTF-8 text: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"configuration file {path} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"configuration file {path} holds no settings")
    return content


def names_of(given: str | list[str] | None) -> list[str]:
    """What a setting names that takes one name, or several, or none."""
    return [given] if isinstance(given, str) else given or []
