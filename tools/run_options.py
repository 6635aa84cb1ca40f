"""What a run needs beside the settings of its pipeline: the stack it runs on, images, resources, secrets."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from ml_filter.commit import code_commit
from ml_filter.config import flat_settings, read_yaml, unknown_key
from ml_filter.errors import ConfigError
from ml_filter.location import Location
from tools.stack import CONNECT, check_packages

if TYPE_CHECKING:
    from zenml.pipelines.pipeline_definition import Pipeline

STACK_CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "stacks"
_VARIABLE = re.compile(r"\$\{(?P<name>\w+)(?::-(?P<default>[^}]*))?\}")
_ACTIVE = "ZENML_ACTIVE_STACK_ID"


def read_run_options(path: str | Path, config: type[BaseModel], stack: str | None) -> dict[str, Any]:
    """What the file of a pipeline says beside `parameters`, under what the file of the stack says.

    Raises:
        ConfigError: a key is unknown or would be ignored, or an environment variable is not set.
    """
    options = _known(path, read_yaml(path), config)
    if stack is None:
        return options
    layer = STACK_CONFIGS / f"{stack}.yaml"
    if not layer.exists():
        known = ", ".join(sorted(file.stem for file in STACK_CONFIGS.glob("*.yaml")))
        raise ConfigError(f"--stack {stack}: {layer} does not exist; create it, or choose one of {known}")
    merged_options: dict[str, Any] = merged(options, _interpolated(_known(layer, read_yaml(layer), config), str(layer)))
    return merged_options


def _known(path: str | Path, content: Mapping[str, Any], config: type[BaseModel]) -> dict[str, Any]:
    """The options of a file, without `parameters`. ZenML ignores unknown keys, and hooks in a file."""
    from zenml.config.pipeline_run_configuration import PipelineRunConfiguration

    known = PipelineRunConfiguration.model_fields
    for name in content:
        if name in config.model_fields and name not in known:
            raise ConfigError(f"{path}: {name} is a setting of the pipeline; put it under `parameters:`")
        if name not in known:
            raise ConfigError(f"{path}: {unknown_key(name, known)}")
        if name.endswith(("hook_source", "hook_kwargs")):
            raise ConfigError(
                f"{path}: ZenML ignores {name} in a file; for a message when a run ends, see Alerts in "
                "docs/operations.md"
            )
    return {name: value for name, value in content.items() if name != "parameters"}


def merged(base: Any, layer: Any) -> Any:
    """The settings of both; where both have a value, that of the layer."""
    if not isinstance(base, Mapping) or not isinstance(layer, Mapping):
        return layer
    return {**base, **{name: merged(base.get(name), value) for name, value in layer.items()}}


def _interpolated(value: Any, path: str) -> Any:
    """The value with the environment's in place of ${NAME} and ${NAME:-default}; null where that is all and empty."""
    if isinstance(value, Mapping):
        return {name: _interpolated(item, f"{path}: {name}") for name, item in value.items()}
    if isinstance(value, list):
        return [_interpolated(item, path) for item in value]
    if not isinstance(value, str):
        return value

    def of_environment(match: re.Match[str]) -> str:
        text = os.environ.get(match["name"]) or match["default"]
        if text is None:
            raise ConfigError(
                f"{path}: the environment variable {match['name']} is not set; export it, or write the value there"
            )
        return text

    return _VARIABLE.sub(of_environment, value)


@contextmanager
def on_stack(name: str | None) -> Iterator[None]:
    """Use a registered stack, whatever is active; None: the active one.

    Raises:
        ConfigError: it is not registered.
    """
    from zenml.client import Client

    if name is None:
        yield
        return
    stacks = [*Client().list_stacks(name=name)]
    if not stacks:
        raise ConfigError(f"--stack {name}: no stack has this name; register it with: poetry poe stack-{name}")
    before = os.environ.get(_ACTIVE)
    os.environ[_ACTIVE] = str(stacks[0].id)
    try:
        yield
    finally:
        os.environ.pop(_ACTIVE)
        if before is not None:
            os.environ[_ACTIVE] = before


def for_active_stack(pipeline: Pipeline, config: BaseModel, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a run on the active stack: the commit as tag, an execution mode and sections of steps that fit.

    Raises:
        ConfigError: the stack cannot run this: packages, paths, execution mode; or an input does not exist.
    """
    from zenml.client import Client
    from zenml.enums import StackComponentType, StoreType

    components = Client().active_stack_model.components
    check_packages(part.flavor_name for parts in components.values() for part in parts)
    component = components[StackComponentType.ORCHESTRATOR][0]
    orchestrator = Client().active_stack.orchestrator
    if orchestrator.config.is_remote:
        check_locations(config, component.name)
        if Client().zen_store.config.type == StoreType.SQL:
            raise ConfigError(
                f"steps on {component.name} cannot reach this local store: connect to a server: {CONNECT}"
            )
    else:
        check_inputs(config)
    supported = [mode.value for mode in orchestrator.supported_execution_modes]
    mode = options.get("execution_mode") or ("fail_fast" if "fail_fast" in supported else supported[0])
    if mode not in supported:
        raise ConfigError(
            f"execution_mode is {mode}, but the orchestrator {component.name} supports {', '.join(supported)}"
        )
    result = {**options, "execution_mode": mode}
    if commit := code_commit():
        result["tags"] = [*options.get("tags", []), f"commit:{commit}"]
    if steps := options.get("steps"):
        planned = pipeline.copy()
        planned.prepare(config)
        result["steps"] = {name: section for name, section in steps.items() if name in planned.invocations}
    return result


def check_locations(config: BaseModel, orchestrator: str) -> None:
    """Check that no setting is a relative path, which each machine would look up in its own directory.

    Raises:
        ConfigError: names the setting.
    """
    for name, value in _locations(config):
        if _is_path(value) and not value.startswith("/"):
            raise ConfigError(
                f"{name} is {value!r}, a path that steps on other machines do not share ({orchestrator} runs each on "
                "its own); give a URL, such as s3://BUCKET/DIRECTORY"
            )


def check_inputs(config: BaseModel) -> None:
    """Check that the files and directories of all steps exist on this machine, so that none fails hours later.

    Raises:
        ConfigError: names the setting.
    """
    for name, path in _locations(config):
        is_input = name != "output" and not name.endswith(".ledger")
        if not is_input or not _is_path(path):
            continue
        location = Location(path)
        if not location.exists() and not location.fs.glob(location.path):
            example = "[PATH]" if name.endswith("paths") else "PATH"
            raise ConfigError(f"{name}: {path} does not exist; set {name}='{example}'")


def _is_path(value: str) -> bool:
    return "://" not in value and not value.startswith(("installed:", "zenml:"))


def _locations(config: BaseModel) -> Iterator[tuple[str, str]]:
    """Names and values of the settings that are a directory, file or glob."""
    for name, value in flat_settings(_without_lists(config.model_dump(mode="json"))).items():
        if name in ("output", "head", "filtered", "tuned") or (name.endswith(".ledger") and value is not None):
            yield name, value
        elif ".paths." in name:
            yield name.rpartition(".")[0], value


def _without_lists(value: Any) -> Any:
    if isinstance(value, list):
        value = {str(number): item for number, item in enumerate(value, 1)}
    return {name: _without_lists(item) for name, item in value.items()} if isinstance(value, dict) else value
