"""Settings from the environment, the base class of all configurations, and YAML files."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, SettingsConfigDict

from ml_filter.errors import ConfigError
from ml_filter.location import Location


def _hub_name(name: str) -> str:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise ValueError(f"{name!r} is not OWNER/NAME")
    return name


Seed = Annotated[int, Field(ge=0, lt=2**63)]
HubName = Annotated[str, AfterValidator(_hub_name)]
"""A repository of the Hugging Face Hub."""
AlertKind = Literal["slack", "discord", "json"]
Event = Literal["failure", "success", "drift"]


class Settings(BaseSettings):
    """Settings from the environment and `.env`. Read them when they are needed, never at import."""

    model_config = SettingsConfigDict(env_prefix="ML_FILTER_", env_file=".env", extra="ignore")

    def __init__(self, **values: Any) -> None:
        """Raises ConfigError if a value is wrong; names the variable and never the value."""
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigError("; ".join(map(_wrong_variable, error.errors()))) from None

    cache_dir: Path = Field(
        default_factory=lambda: Path.home() / ".cache" / "ml_filter",
        description="directory of what is fetched or computed once: heads from URLs, the embedded annotator's weights, "
        "embeddings; in a container, a volume that lasts saves fetching them again",
    )
    embedding_dir: Path = Field(
        default_factory=lambda data: data["cache_dir"] / "embeddings",
        description="directory of the embeddings alone, which the next head reuses; default: in the cache directory",
    )
    endpoint: str | None = Field(
        None, description="OpenAI-compatible base URL, or several separated by commas; default: the embedded annotator"
    )
    model: str | None = Field(None, description="model name at the endpoint")
    api_key: SecretStr | None = Field(None, description="API key of the endpoint")
    embedded_model: Path | None = Field(
        None,
        description="GGUF file that the embedded annotator runs instead of SmolLM2, such as a model that "
        "`ml-filter tune` wrote",
    )
    ca_bundle: str | None = Field(
        None,
        description="PEM file of further certificate authorities to trust at endpoints and web sites, such as a "
        "company's own",
    )
    alert_webhook: SecretStr | None = Field(
        None, description="webhook for alerts about runs: Slack, Discord, or any URL that accepts JSON"
    )
    alert_kind: AlertKind | None = Field(None, description="slack, discord or json (default: from the URL)")
    alert_on: Annotated[str, Field(pattern=r"^(failure|success|drift)(,(failure|success|drift))*$")] = Field(
        "failure,drift", description="events to report, separated by commas: failure, success, drift"
    )
    lease_s: Annotated[float, Field(gt=0)] = Field(
        60, description="seconds without a heartbeat after which a run that writes to a URL counts as killed"
    )
    metrics_directory: Path | None = Field(
        None,
        description="directory of the node exporter's text files, for Prometheus metrics of annotation and scoring",
    )
    metrics_gateway: str | None = Field(
        None, description="URL of a Prometheus push gateway, for metrics of annotation and scoring"
    )
    metrics_every_s: Annotated[float, Field(gt=0)] = Field(15, description="seconds between two deliveries of metrics")
    trace_share: Annotated[float, Field(ge=0, le=1)] = Field(
        0, description="share of the documents whose prompts and answers are sent to Opik (needs the extra traces)"
    )
    hf_token: SecretStr | None = Field(
        None,
        validation_alias="HF_TOKEN",
        description="token of the Hugging Face Hub, for private repositories and for pushing; default: `hf auth login`",
    )
    comet_api_key: SecretStr | None = Field(None, validation_alias="COMET_API_KEY", description="API key of Comet")
    qdrant_api_key: SecretStr | None = Field(None, description="API key of the Qdrant server of an index")
    mongodb_uri: SecretStr | None = Field(
        None, description="MongoDB connection string with its options, for locations mongodb:///DATABASE.COLLECTION"
    )
    mongodb_user: str | None = Field(None, description="user name at MongoDB")
    mongodb_password: SecretStr | None = Field(None, description="password of the user at MongoDB")
    mongodb_ca_file: str | None = Field(
        None, description="PEM file of the authority of MongoDB's certificate; turns TLS on"
    )
    mongodb_timeout_s: Annotated[float, Field(gt=0)] = Field(
        30, description="seconds to wait for a MongoDB server before giving up"
    )


def hub_token() -> str | None:
    """The token of the Hugging Face Hub in the settings; None: the client uses that of `hf auth login`, if any."""
    token = Settings().hf_token
    return token.get_secret_value() if token else None


@dataclass(frozen=True)
class Cli:
    """How a setting appears on the command line, as in `Annotated[list[str], Cli("--prompt")]`.

    Attributes:
        name: of the option; None: from the setting's name, so that `max_tokens` is `--max-tokens`.
        metavar: placeholder of the value in --help; None: from the type.
        comma_separated: `--by language,source` is the same as `--by language --by source`.
        options: of a nested section, the options for its settings, as in {"paths": "--gold"}. Sections have none else.
    """

    name: str | None = None
    metavar: str | None = None
    comma_separated: bool = False
    options: Mapping[str, str] = field(default_factory=dict)


class StageConfig(BaseModel):
    """Base of the stage configurations: unknown keys are errors, so that a typo is not ignored.

    Errors do not repeat the input: a secret may be in the wrong place.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _keys_are_known(cls, values: Any) -> Any:
        if isinstance(values, dict):
            unknown = [name for name in values if name not in cls.model_fields]
            if unknown:
                raise ValueError("; ".join(unknown_key(name, cls.model_fields) for name in unknown))
        return values


def unknown_key(name: str, known: Iterable[str]) -> str:
    """An error message with the known name that is most like the unknown one, or all if none is like it."""
    known = list(known)
    matches = get_close_matches(str(name), known, n=1)
    hint = f" (did you mean {matches[0]!r}?)" if matches else f"; known keys: {', '.join(known)}"
    return f"unknown key {str(name)!r}{hint}"


def flat_settings(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested settings; the names of sections and settings are joined with dots."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        path = f"{prefix}{name}"
        flat |= flat_settings(value, f"{path}.") if isinstance(value, Mapping) else {path: value}
    return flat


def _wrong_variable(error: ErrorDetails) -> str:
    name = str(error["loc"][0])
    variable = name if name.isupper() else f"{Settings.model_config['env_prefix']}{name.upper()}"
    field = Settings.model_fields.get(name)
    meaning = f" ({field.description})" if field and error["type"] == "string_pattern_mismatch" else ""
    return f"{variable}: {problem_text(error)}{meaning}"


def problem_text(error: ErrorDetails) -> str:
    """The message of an error, without the prefix that pydantic adds to our own."""
    return error["msg"].removeprefix("Value error, ")


def override_about(error: ErrorDetails, names: Iterable[str]) -> str | None:
    """The override that a problem is about: that of the setting, or one that the message about its section names."""
    location = ".".join(map(str, error["loc"]))
    longest_first = sorted(names, key=len, reverse=True)
    for name in longest_first:
        if f"{location}.".startswith(f"{name}."):
            return name
    if error["type"] == "value_error":
        section, text = f"{location}." if location else "", problem_text(error)
        named = re.findall(r"unknown key '([^']*)'", text) or re.findall(r"\w+", text)
        for name in longest_first:
            if name.startswith(section) and name.removeprefix(section).partition(".")[0] in named:
                return name
    return None


def problems_in(error: ValidationError, whole: str) -> str:
    """The problems of a validation in one line; `whole` names what was validated, for problems of no single setting."""
    return "; ".join(f"{'.'.join(map(str, e['loc'])) or whole}: {problem_text(e)}" for e in error.errors())


def parse_override(text: str) -> tuple[str, Any]:
    """The name and value in `sample.size=500`. The value is YAML.

    Raises:
        ConfigError: the text is not of this form.
    """
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ConfigError(f"{text!r} is not of the form NAME=VALUE, as in sample.size=500")
    try:
        return name, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: {value!r} is not YAML: {_yaml_problem(error)}") from error


def _yaml_problem(error: yaml.YAMLError) -> str:
    """What is wrong and where, in one line and without the text, which may hold a secret."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return type(error).__name__
    mark = error.problem_mark
    return f"{error.problem} (line {mark.line + 1}, column {mark.column + 1})"


def with_overrides(settings: Mapping[str, Any], overrides: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """A copy of the settings with other values; the name `sample.size` is the setting `size` of the section `sample`.

    Raises:
        ConfigError: a name leads through a value that is not a section.
    """
    merged = copy.deepcopy(dict(settings))
    for name, value in overrides:
        *sections, last = name.split(".")
        section = merged
        for part in sections:
            if section.get(part) is None:
                section[part] = {}
            section = section[part]
            if not isinstance(section, dict):
                raise ConfigError(f"{name}: {part} is a value, not a section with settings")
        section[last] = value
    return merged


def read_settings(path: str | Path) -> dict[str, Any]:
    """The settings in a YAML file; of the file of a pipeline, those under `parameters`.

    Raises:
        ConfigError: as `read_yaml`, or `parameters` is not a section.
    """
    content = read_yaml(path)
    if "parameters" not in content:
        return content
    parameters = content["parameters"] or {}
    if not isinstance(parameters, dict):
        raise ConfigError(f"configuration file {path}: parameters is {parameters!r}, not a section with settings")
    return parameters


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ConfigError: the file does not exist, is not text or is not a mapping.
        InputError: it cannot be reached.
    """
    text = Location(path).find_bytes()
    if text is None:
        raise ConfigError(f"configuration file {path} does not exist")
    try:
        content = yaml.safe_load(text.decode())
    except UnicodeDecodeError as error:
        raise ConfigError(f"configuration file {path} cannot be read as UTF-8 text: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"configuration file {path} is not YAML: {_yaml_problem(error)}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"configuration file {path} must contain a mapping of settings")
    return content


def names_of(names: str | list[str] | None) -> list[str]:
    """The names in a setting that accepts one name, a list, or None."""
    return [names] if isinstance(names, str) else names or []
