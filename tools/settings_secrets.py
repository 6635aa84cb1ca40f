"""Keep settings as ZenML secrets, one for each service. The body of `export-settings-to-zenml` and
`delete-settings-zenml`.

A step gets a secret only if the run configuration names it (`secrets:`); its values are then environment variables.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from pydantic import SecretStr

from ml_filter.config import Settings
from tools.document_settings import variable_of
from tools.task import run_task

SERVICES: dict[str, tuple[str, ...]] = {
    "endpoint": ("endpoint", "model", "api_key", "ca_bundle"),
    "hub": ("hf_token",),
    "comet": ("comet_api_key",),
    "mongodb": ("mongodb_",),
    "qdrant": ("qdrant_api_key",),
    "alerts": ("alert_",),
}
"""The settings of each service; a name that ends in `_` stands for all that begin with it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Export the settings or delete the secrets; returns the exit code: 0 done, 2 not possible."""
    return run_task(_parser(), _run, arguments, quiet=True)


def secret_name(service: str) -> str:
    """The name of a service's secret in ZenML."""
    return f"ml_filter_{service}"


def settings_of(service: str) -> list[str]:
    """The names of the settings that belong to a service."""
    return [
        name
        for name in Settings.model_fields
        if any(name == part or (part.endswith("_") and name.startswith(part)) for part in SERVICES[service])
    ]


def values_of(service: str, settings: Settings) -> dict[str, str]:
    """The environment variables of a service that are set, with their values."""
    values = {}
    for name in settings_of(service):
        value = getattr(settings, name) if name in settings.model_fields_set else None
        text = value.get_secret_value() if isinstance(value, SecretStr) else value
        if text not in (None, ""):
            values[variable_of(name)] = str(text)
    return values


def _run(options: argparse.Namespace) -> None:
    from zenml.client import Client

    client = Client()
    for service in SERVICES:
        print((_delete if options.command == "delete" else _export)(client, service))


def _export(client: Any, service: str) -> str:
    name, values = secret_name(service), values_of(service, Settings())
    known = _find(client, name)
    if not values:
        state = "; the secret from an earlier export stays" if known else ""
        return f"{name}: nothing is set{state}"
    if known is None:
        client.create_secret(name, values)
        return f"{name}: created with {', '.join(values)}"
    dropped = [variable for variable in known.secret_values if variable not in values]
    if known.secret_values == values:
        return f"{name}: unchanged with {', '.join(values)}"
    client.update_secret(known.id, add_or_update_values=values, remove_values=dropped)
    removed = f"; removed {', '.join(dropped)}" if dropped else ""
    return f"{name}: updated with {', '.join(values)}{removed}"


def _delete(client: Any, service: str) -> str:
    name = secret_name(service)
    if _find(client, name) is None:
        return f"{name}: nothing to delete"
    client.delete_secret(name)
    return f"{name}: deleted"


def _find(client: Any, name: str) -> Any:
    try:
        return client.get_secret(name, allow_partial_name_match=False, allow_partial_id_match=False)
    except KeyError:
        return None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="poetry poe", description="Settings as secrets in ZenML.")
    commands = parser.add_subparsers(dest="command", required=True)
    services = ", ".join(secret_name(service) for service in SERVICES)
    commands.add_parser(
        "export",
        prog="poetry poe export-settings-to-zenml",
        description=f"Create or update the secrets {services} from the environment and .env. Settings that are not "
        "set are left out. Prints names, never values.",
    )
    commands.add_parser(
        "delete", prog="poetry poe delete-settings-zenml", description=f"Delete the secrets {services}."
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
