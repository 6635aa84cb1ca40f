"""A ZenML store for the tests of a module, and pipelines that run in this process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ml_filter.logs import configure_logging
from tools.run import main


def _reset_zenml() -> None:
    from zenml.client import Client
    from zenml.config.global_config import GlobalConfiguration

    GlobalConfiguration._reset_instance()
    Client._reset_instance()


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Iterator[Path]:
    """The directory of an empty ZenML store."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("ZENML")]:
            patch.delenv(name)
        path = tmp_path_factory.mktemp("zenml")
        patch.setenv("ZENML_CONFIG_PATH", str(path))
        patch.setenv("ZENML_ANALYTICS_OPT_IN", "false")
        _reset_zenml()
        yield path
    _reset_zenml()
    configure_logging()  # a pipeline hands log lines to ZenML


@pytest.fixture
def run(store, capsys):
    """Run a pipeline; returns the exit code and what is printed."""

    def run_pipeline(*arguments: str) -> tuple[int, str]:
        capsys.readouterr()
        code = main(arguments)
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return run_pipeline


@pytest.fixture(scope="session", autouse=True)
def _source_root() -> None:
    """Tell ZenML where the code is: xdist workers have no main file to find it by."""
    from zenml.utils.source_utils import set_custom_source_root

    set_custom_source_root(str(Path(__file__).resolve().parents[2]))


@pytest.fixture
def orchestrator(store):
    """Activate a stack with one of the orchestrators of tests/pipelines/orchestrators.py, for one test."""
    from zenml.client import Client
    from zenml.enums import StackComponentType

    def activate(name: str) -> None:
        client = Client()
        client.create_flavor(f"tests.pipelines.orchestrators.{name.title()}Flavor", StackComponentType.ORCHESTRATOR)
        client.create_stack_component(name, name, StackComponentType.ORCHESTRATOR, {})
        stack = client.create_stack(
            name, {StackComponentType.ORCHESTRATOR: name, StackComponentType.ARTIFACT_STORE: "default"}
        )
        client.activate_stack(stack.id)

    yield activate
    Client().activate_stack("default")
