"""Register the components of a stack, or delete them. The body of the `stack-*` tasks."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ml_filter.errors import ConfigError
from ml_filter.extras import how_to_install, missing_packages
from tools.task import run_task

if TYPE_CHECKING:
    from zenml.models import ComponentResponse

ARTIFACT_STORES = {"s3": "s3", "gs": "gcp", "az": "azure", "abfs": "azure"}
"""ZenML's flavor of an artifact store by the scheme of its URL."""
PACKAGES = {
    "sagemaker": ("aws", ("sagemaker", "boto3")),
    "kubernetes": ("kubernetes", ("kubernetes",)),
    "s3": ("s3", ("s3fs", "boto3")),
    "gcp": ("gcs", ("gcsfs",)),
    "azure": ("azure", ("adlfs",)),
}
"""The extra that components of a flavor need, and packages in it."""
CONNECT = "zenml login URL"


@dataclass(frozen=True)
class Option:
    """An option of a task. Its value may also come from the environment."""

    name: str
    help: str
    required: bool = True

    @property
    def variable(self) -> str:
        """The environment variable: ML_FILTER_STACK_REGION for --region."""
        return f"ML_FILTER_STACK_{self.name.upper().replace('-', '_')}"


@dataclass(frozen=True)
class Component:
    """A component of a stack; None in its configuration for what is not set."""

    kind: str
    flavor: str
    configuration: dict[str, Any]


Values = dict[str, Any]
_STORE = Option("artifact-store", "directory of the artifacts, such as s3://BUCKET/zenml; also gs:// and az://")
_REGISTRY = Option(
    "registry", "container registry of the image, such as 123456789012.dkr.ecr.eu-central-1.amazonaws.com"
)
_ENDPOINT = Option("s3-endpoint", "URL of an S3-compatible storage (default: AWS)", required=False)


@dataclass(frozen=True)
class Stack:
    """A kind of stack: its options, and its components from their values."""

    description: str
    example: str
    options: tuple[Option, ...] = ()
    components: Callable[[Values], list[Component]] = lambda values: []


def _aws(values: Values) -> list[Component]:
    roles = {"execution_role": values["execution_role"], "scheduler_role": values["scheduler_role"]}
    where = {"region": values["region"], "bucket": values["bucket"], "synchronous": False}
    store = values["artifact_store"] or f"s3://{values['bucket']}/zenml"
    return [
        Component("orchestrator", "sagemaker", {**roles, **where}),
        *_storage({**values, "artifact_store": store}, "aws"),
    ]


def _kubernetes(values: Values) -> list[Component]:
    orchestrator = {
        "kubernetes_context": values["context"],
        "kubernetes_namespace": values["namespace"],
        "pass_zenml_token_as_secret": True,  # otherwise the token is in the manifest of every Job
        "skip_local_validations": True,  # of the image builder, which is not used: the image is built before
    }
    return [Component("orchestrator", "kubernetes", orchestrator), *_storage(values, "default")]


def _storage(values: Values, registry: str) -> list[Component]:
    scheme, separator, _ = str(values["artifact_store"]).partition("://")
    if not separator or scheme not in ARTIFACT_STORES:
        known = ", ".join(f"{name}://" for name in ARTIFACT_STORES)
        raise ConfigError(f"--artifact-store {values['artifact_store']}: not a URL of object storage ({known})")
    endpoint = values.get("s3_endpoint")
    options = {"client_kwargs": {"endpoint_url": endpoint} if endpoint else None} if scheme == "s3" else {}
    return [
        Component("artifact_store", ARTIFACT_STORES[scheme], {"path": values["artifact_store"], **options}),
        Component("container_registry", registry, {"uri": values["registry"]}),
        Component("image_builder", "local", {}),
    ]


STACKS = {
    "local": Stack(
        "Run the steps on this machine, with artifacts in ZenML's own directory.",
        "stack-local",
    ),
    "aws": Stack(
        "Run each step on its own machine on SageMaker. deploy/aws creates what the options name.",
        "stack-aws $(terraform -chdir=deploy/aws output -raw stack_options)",
        (
            Option("region", "AWS region"),
            Option("bucket", "name of the S3 bucket for results and artifacts"),
            Option("execution-role", "ARN of the role of the steps"),
            Option("scheduler-role", "ARN of the role that starts scheduled runs", required=False),
            _REGISTRY,
            Option("artifact-store", "directory of the artifacts (default: s3://BUCKET/zenml)", required=False),
        ),
        _aws,
    ),
    "kubernetes": Stack(
        "Run each step in its own pod. deploy/kubernetes creates namespace, service accounts and roles.",
        "stack-kubernetes --context my-cluster --namespace ml-filter --artifact-store s3://BUCKET/zenml "
        "--registry registry.example.com/team",
        (
            Option("context", "context of the cluster in your kubeconfig"),
            Option("namespace", "namespace of the runs"),
            _STORE,
            _REGISTRY,
            _ENDPOINT,
        ),
        _kubernetes,
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Register, update or delete a stack; returns the exit code."""
    return run_task(_parser(), _change, arguments, quiet=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="poetry poe", description="Register or delete a stack.")
    stacks = parser.add_subparsers(dest="stack", required=True)
    for name, stack in STACKS.items():
        task = stacks.add_parser(
            name,
            prog=f"poetry poe stack-{name}",
            description=f"{stack.description} Registers the stack and activates it; a second call changes only what "
            "differs.",
            epilog=f"example: poetry poe {stack.example}",
        )
        task.add_argument("--name", default=name, help="name of the stack and its components (default: %(default)s)")
        for option in stack.options:
            text = f"{option.help} [{option.variable}]".replace("%", "%%")
            task.add_argument(f"--{option.name}", default=os.environ.get(option.variable) or None, help=text)
        task.add_argument("--delete", action="store_true", help="delete the stack and its components")
    return parser


def _change(arguments: argparse.Namespace) -> None:
    warnings.filterwarnings("ignore", message="DELETE statement on table")  # ZenML deletes parts of a stack twice
    stack, values = STACKS[arguments.stack], vars(arguments)
    if arguments.delete:
        return _finish(_delete, arguments.name)
    for option in stack.options:
        if option.required and not values[option.name.replace("-", "_")]:
            raise ConfigError(f"--{option.name} is not set: {option.help} (or set {option.variable})")
    components = stack.components(values)
    check_packages(component.flavor for component in components)
    return _finish(_register, arguments.name, components)


def check_packages(flavors: Iterable[str]) -> None:
    """Check that the packages of components are installed.

    Raises:
        ConfigError: with the command that installs them.
    """
    needed = [PACKAGES[flavor] for flavor in flavors if flavor in PACKAGES]
    missing = {extra: names for extra, required in needed if (names := missing_packages(required))}
    if missing:
        packages = ", ".join(dict.fromkeys(name for names in missing.values() for name in names))
        raise ConfigError(f"the stack needs {packages}; {how_to_install(*missing)}")


def _finish(change: Callable[..., Iterator[str]], *arguments: Any) -> None:
    """Make the changes and print each; ZenML's errors become one line."""
    try:
        for line in change(*arguments):
            print(line)
    except (KeyError, ValueError, RuntimeError) as error:  # ZenML's errors are among these
        reason = str(error.args[0] if error.args else error).strip().splitlines()
        raise ConfigError(" ".join(line.strip() for line in reason)) from error


def _register(name: str, components: list[Component]) -> Iterator[str]:
    """Create or update the components, then the stack."""
    from zenml.client import Client
    from zenml.enums import StackComponentType, StoreType

    client = Client()
    if components and client.zen_store.config.type == StoreType.SQL:
        raise ConfigError(f"other machines cannot reach this local store: connect to a server: {CONNECT}")
    ids = {}
    for component in components:
        kind = StackComponentType(component.kind)
        existing = _component(name, component.kind)
        label = f"{component.kind.replace('_', ' ')} {name} ({component.flavor})"
        if existing is None:
            configuration = {key: value for key, value in component.configuration.items() if value is not None}
            existing = client.create_stack_component(name, component.flavor, kind, configuration)
            yield f"created {label}"
        elif existing.flavor_name != component.flavor:
            raise ConfigError(
                f"{component.kind.replace('_', ' ')} {name} exists with the flavor {existing.flavor_name}; "
                "choose another --name or delete it"
            )
        elif changed := _changes(existing.configuration, component.configuration):
            existing = client.update_stack_component(existing.id, kind, configuration=changed)
            yield f"updated {label}: {', '.join(changed)}"
        else:
            yield f"unchanged {label}"
        ids[kind] = existing.id
    if not components:  # ZenML's own, which it always has
        ids = {
            kind: client.get_stack_component(kind, "default", allow_name_prefix_match=False).id
            for kind in (StackComponentType.ORCHESTRATOR, StackComponentType.ARTIFACT_STORE)
        }
    [*stacks] = client.list_stacks(name=name, hydrate=True)
    if not stacks:
        client.create_stack(name, ids)
        yield f"created stack {name}"
    elif {kind: [part.id for part in parts] for kind, parts in stacks[0].components.items()} != {
        kind: [part] for kind, part in ids.items()
    }:
        client.update_stack(name, component_updates=ids)
        yield f"updated stack {name}"
    client.activate_stack(name)
    yield f"active stack: {name}"


def _changes(existing: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    """The settings that differ. Others of a component, which ZenML or a person added, stay."""
    return {key: value for key, value in wanted.items() if existing.get(key) != value}


def _component(name: str, kind: str) -> ComponentResponse | None:
    from zenml.client import Client

    return next(iter(Client().list_stack_components(name=name, type=kind, hydrate=True)), None)


def _delete(name: str) -> Iterator[str]:
    """Delete the stack, and those of its components that have its name and belong to no other stack."""
    from zenml.client import Client
    from zenml.enums import StackComponentType

    client = Client()
    if name == "default":
        raise ConfigError("the stack default belongs to ZenML")
    stacks = [*client.list_stacks(name=name)]
    if stacks:
        if client.active_stack_model.id == stacks[0].id:
            client.activate_stack("default")
            yield "active stack: default"
        client.delete_stack(stacks[0].id)
        yield f"deleted stack {name}"
    components = [component for kind in StackComponentType if (component := _component(name, kind.value))]
    for component in components:
        client.delete_stack_component(component.id, component.type)
        yield f"deleted {component.type.value.replace('_', ' ')} {name} ({component.flavor_name})"
    if not stacks and not components:
        yield f"nothing to delete: no stack or component is named {name}"


if __name__ == "__main__":
    sys.exit(main())
